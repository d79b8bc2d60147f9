"""``python -m exact_titan``: the command line ``exact-titan``."""

import sys

from exact_titan.cli import main

if __name__ == "__main__":
    sys.exit(main())
