"""Constraint lines that keep what an environment already has: its torch, and what is built against it.

    python scripts/keep_torch.py > keep.txt && python -m pip install -c keep.txt .

Versions come from package metadata, never from an import: torch may refuse to import where torch_npu finds no
CANN. With the lines, pip can only fail and say why; without them it may replace a torch that matches CANN.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

KEPT = ("torch", "torch-npu", "torchvision", "torchaudio")
# An environment on numpy 1 stays there; pyarrow 26 is the first that refuses to import beside it.
BESIDE_NUMPY_1 = ("numpy<2", "pyarrow<26")


def installed(name: str) -> str | None:
    """The version pip knows a package by, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def lines(version_of: Callable[[str], str | None]) -> list[str]:
    """`name==version` for every package of KEPT that is there, and what numpy 1 needs where numpy is 1.x."""
    found = [(name, version_of(name)) for name in KEPT]
    pins = [f"{name}=={exact}" for name, exact in found if exact]
    numpy = version_of("numpy")
    return pins + list(BESIDE_NUMPY_1 if numpy and numpy.startswith("1.") else ())


def main() -> int:
    if find_spec("torch") is not None and installed("torch") is None:
        print(
            f"{sys.executable} finds a torch that pip has no record of and would install another over; "
            "type `pip install --no-deps .` and install the other dependencies by hand",
            file=sys.stderr,
        )
        return 1
    print("\n".join(lines(installed)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
