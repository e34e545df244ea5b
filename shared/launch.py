"""``torchrun`` with the exit code of the training, for schedulers that act on it.

``torchrun`` exits with 1 whatever exit codes its processes had. ``python -P -m shared.launch`` takes the same arguments
and exits with the code of the process that failed first: 2 if the training was refused, so that a restart does not
help; 143 or 138 if SIGTERM or SIGUSR1 stopped it, so that a restart resumes it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs ``torchrun`` with the arguments and returns the exit code; 128 + N for signal N, as in shells."""
    try:
        torchrun(sys.argv[1:] if arguments is None else list(arguments))
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        return code if code >= 0 else 128 - code
    except SignalException as stopped:
        return 128 + stopped.sigval
    return 0


if __name__ == "__main__":
    sys.exit(main())
