"""Evaluate architectures of a trained supernet. `python eval.py --help` says how."""

import sys

from bignas_jax.cli.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
