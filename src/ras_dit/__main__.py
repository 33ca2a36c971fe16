"""``python -m ras_dit`` is the same as ``ras-dit``."""

import sys

from ras_dit.cli import main

sys.exit(main())
