"""``python -m trivium``. Unlike ``trivium``, it puts the working directory first on the import path."""

from shared.cli import main

raise SystemExit(main())
