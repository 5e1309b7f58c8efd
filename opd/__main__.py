"""``python -m opd`` is the command line."""

from opd.cli import main

raise SystemExit(main())
