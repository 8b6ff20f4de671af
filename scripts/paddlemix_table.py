"""docs/paddlemix_flags.md, and the table of findings in docs/from_paddlemix.md, from what the package knows.

`python scripts/paddlemix_table.py` writes the first and prints the second; a test holds the pages to both.
"""

from __future__ import annotations

import re
from pathlib import Path

from anymix import config
from anymix.paddlemix import FINDINGS, Flag, Script, scripts

PAGE = Path(__file__).resolve().parents[1] / "docs" / "paddlemix_flags.md"
SECTIONS = "|".join(config.Run.model_fields)
KEY = re.compile(rf"\b({SECTIONS})\.[a-z_0-9]+(=[a-z0-9]+)?\b|^({SECTIONS})$")
HEAD = """# Flags of PaddleMIX, and the keys they become

Written by `scripts/paddlemix_table.py` from the tables of the package. `default` is that of their script, and holds
where a flag is not typed. `here` is the key of a recipe (or the option of a command) that takes it; where there is
none, the sentence that is said. Flags begin with `--`; of a JSON config the keys are listed, of a shell script the
variables it reads. [from_paddlemix.md](from_paddlemix.md) tells how they are used.
"""


def page() -> str:
    return HEAD + "".join(_table(script) for script in scripts().values())


def _table(script: Script) -> str:
    elder = next(other for other in scripts().values() if other.listed == script.listed)
    if elder is not script:
        return f"\n## {script.name}\n\n{script.about}\n\nThe same as of {elder.name}.\n"
    rows = "".join(f"| `{typed}` | {_default(flag)} | {_here(flag)} |\n" for typed, flag in script.listed.items())
    return f"\n## {script.name}\n\n{script.about}\n\n| said | default | here |\n|---|---|---|\n{rows}"


def _default(flag: Flag) -> str:
    return f"`{flag.unsaid}`" if flag.unsaid and not flag.required else flag.unsaid


def _here(flag: Flag) -> str:
    """Keys of a recipe as code, the rest as it is said."""
    keys = "; ".join(text for text in (flag.to, flag.sets) if text)
    marked = KEY.sub(r"`\g<0>`", keys)
    return "; ".join(text.replace("|", "\\|") for text in (marked, flag.says) if text)


def findings() -> str:
    return "".join(f"| F{number} | {theirs} | {here} |\n" for number, (theirs, here) in FINDINGS.items())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(findings(), end="")
