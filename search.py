"""Search a trained supernet. `python search.py --help` says how."""

from bignas_jax.cli.searching import main
from bignas_jax.cli.stopping import script

if __name__ == "__main__":
    script(main)
