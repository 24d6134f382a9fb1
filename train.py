"""Train a supernet, or one architecture of it. `python train.py --help` says how."""

import sys

from bignas_jax.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
