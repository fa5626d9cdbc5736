"""Runs recbole_gmc from a checkout: ``python run_recbole_gmc.py --help`` lists the commands."""

import sys

from recbole_gmc.cli import main

if __name__ == "__main__":
    sys.exit(main())
