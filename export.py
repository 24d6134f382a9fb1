"""Take children out of a trained supernet. `python export.py --help` says how."""

import sys

from bignas_jax.cli.export import main

if __name__ == "__main__":
    sys.exit(main())
