"""Take children out of a trained supernet. `python export.py --help` says how."""

from bignas_jax.cli.export import main
from bignas_jax.cli.stopping import script

if __name__ == "__main__":
    script(main)
