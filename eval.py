"""Evaluate architectures of a trained supernet. `python eval.py --help` says how."""

from bignas_jax.cli.evaluate import main
from bignas_jax.cli.stopping import script

if __name__ == "__main__":
    script(main)
