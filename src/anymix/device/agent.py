"""torchrun, and one line instead of its traceback: `python -m anymix.device.agent [torchrun's arguments]`.

A process that fails has said why itself. torchrun would bury that under forty lines about having seen it, so
they are left out, and only a process that could not speak (killed by a signal) is spoken for.
"""

from __future__ import annotations

import logging
import signal
import sys

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def main() -> int:
    """Exit code of the first process that failed, 128 + n where signal n ended it; 0 when none did."""
    logging.disable(logging.ERROR)
    try:
        run.main()
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        if failure.exitcode > 0:
            return int(failure.exitcode)
        number = -failure.exitcode
        why = " (out of host memory, most likely: `dmesg | tail` tells)" if number == signal.SIGKILL else ""
        sys.stderr.write(f"rank {rank} was ended by signal {number}{why}\n")
        return 128 + number
    return 0


if __name__ == "__main__":
    sys.exit(main())
