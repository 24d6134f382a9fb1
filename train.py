"""Train a supernet, or one architecture of it. `python train.py --help` says how."""

from bignas_jax.cli.stopping import script
from bignas_jax.cli.train import main

if __name__ == "__main__":
    script(main)
