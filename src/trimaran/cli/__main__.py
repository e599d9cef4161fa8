"""``python -m trimaran.cli`` is ``trimaran``."""

import sys

from trimaran.cli import main

sys.exit(main())
