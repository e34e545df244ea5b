"""``python -m shared.cli``. It puts the working directory first on the path, which ``trivium`` does not."""

from shared.cli.main import main

raise SystemExit(main())
