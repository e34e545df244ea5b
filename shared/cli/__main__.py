"""``python -m shared.cli``. Unlike ``trivium``, it puts the working directory first on the import path."""

from shared.cli.main import main

raise SystemExit(main())
