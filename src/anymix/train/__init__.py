"""The one loop: it asks any family for a summed loss and never learns which family it is.

This room is also the function: `anymix.train(run)` is `anymix.train.loop.train(run)`. A module's class may be set
(Python's data model, "Customizing module attribute access"), which is the only way both names can be true.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anymix.config import Run
    from anymix.train.loop import Outcome


class _Room(ModuleType):
    def __call__(self, run: Run, **options: Any) -> Outcome:
        """Train as `run` says; see `anymix.train.loop.train`."""
        from anymix.train.loop import train

        return train(run, **options)


sys.modules[__name__].__class__ = _Room
