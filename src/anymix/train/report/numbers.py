"""Numbers as people read them, and as the journal has them."""

from __future__ import annotations

from anymix.train.report.markup import Html, tag


def number(value: float) -> str:
    """Four significant digits, from 1,000 on whole: 0.4011, 1.5e-5, 4,783."""
    if value == int(value) and abs(value) < 1e15:
        return f"{value:,.0f}"
    if abs(value) >= 1000:
        return f"{value:,.0f}" if abs(value) < 1e7 else _power(value)
    return f"{value:.4g}" if abs(value) >= 1e-3 else _power(value)


def _power(value: float) -> str:
    digits, _, power = f"{value:.3e}".partition("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(power)}"


def exact(value: float) -> Html:
    """Shown short, with every digit in the page."""
    return tag("data", number(value), value=repr(value))


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60:02d} min" if hours else f"{rest // 60} min {rest % 60:02d} s"


def share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "0 %"
