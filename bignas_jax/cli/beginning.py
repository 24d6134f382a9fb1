"""Write a recipe that fits a folder of images: batch, held-out part, calibration and epochs follow from their number.

    python -m bignas_jax init ROOT                        # writes ROOT's name and .py into the current folder
    python -m bignas_jax init ROOT --out configs/mine.py
    python -m bignas_jax train --config mine.py

ROOT holds train/<class>/* and val/<class>/* (valid, validation and test are known, too).
"""

import argparse
import os
import pathlib
import re
import shlex
import sys

from bignas_jax.cli import flags
from bignas_jax.text import shown


def main() -> int:
    program, *rest = flags.take_debug(sys.argv)
    parser = flags.Parser(program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", metavar="ROOT", help="the folder of images")
    parser.add_argument("--out", default="", help="the recipe's file; by default ROOT's name and .py")
    arguments = parser.parse_args(rest)
    from bignas_jax.cli import scripts

    def work() -> None:
        import jax

        from bignas_jax.errors import ConfigError
        from bignas_jax.files import write_text
        from bignas_jax.runs.own_recipe import own_recipe

        name = re.sub(r"\W", "_", pathlib.Path(arguments.root).resolve().name) or "mine"
        path = pathlib.Path(arguments.out or f"{name}.py")
        if path.suffix != ".py":
            raise ConfigError(f"--out: found {path}, expected a file that ends in .py")
        if os.path.lexists(path):
            raise ConfigError(f"--out: {path} is there already, expected a new file: remove it, or give another --out")
        recipe = own_recipe(arguments.root, jax.local_device_count())
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, recipe.text(str(path)))
        print(shown(recipe.about))
        print(f"\nwritten to {shown(str(path))}; next:\n\n"
              f"python -m bignas_jax train --config {shown(shlex.quote(str(path)))}")  # fmt: skip

    return scripts.run(program, work)
