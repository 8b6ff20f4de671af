"""What every file of rows gives, whatever its format: its name, how many rows, and each as it is stored."""

from __future__ import annotations

from typing import Any, Protocol


class Source(Protocol):
    """Raw rows of one file. `record` raises SampleError for a row that cannot be read."""

    @property
    def name(self) -> str: ...
    def __len__(self) -> int: ...
    def key(self, n: int) -> str: ...
    def record(self, n: int) -> Any: ...
