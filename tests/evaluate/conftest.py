"""torch and transformers take seconds to import; no test is to be charged for it."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def _imported() -> None:
    import anymix.evaluate.during
    import anymix.train.loop  # noqa: F401
