"""``python -m recbole_gmc`` is the same as ``recbole-gmc``."""

import sys

from recbole_gmc.cli import main

if __name__ == "__main__":
    sys.exit(main())
