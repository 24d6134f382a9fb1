"""Search a trained supernet. `python search.py --help` says how."""

import sys

from bignas_jax.cli.search import main

if __name__ == "__main__":
    sys.exit(main())
