"""``torchrun`` whose exit code says what became of the training, for schedulers that act on it.

``torchrun`` ends with 1 whatever its processes ended with. ``python -P -m shared.launch`` takes the same arguments and
ends with the exit code of the process that failed first: 2 where the training was refused, which starting it again
does not mend; 143 or 138 where it was told to stop by SIGTERM or SIGUSR1, and goes on when it is started again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs ``torchrun`` with the arguments, and returns an exit code; 128 + N for a signal N, as shells do."""
    try:
        torchrun(sys.argv[1:] if arguments is None else list(arguments))
    except ChildFailedError as failed:
        code = failed.get_first_failure()[1].exitcode
        return code if code >= 0 else 128 - code
    except SignalException as told:
        return 128 + told.sigval
    return 0


if __name__ == "__main__":
    sys.exit(main())
