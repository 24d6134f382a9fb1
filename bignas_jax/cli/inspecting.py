"""Show what a child takes the classes for: its confusion, its worst classes, and where it is surest and wrong.

    python -m bignas_jax inspect --workdir exp/digits
    python -m bignas_jax inspect --workdir exp/mine --arch exp/mine/children/NAME/architecture.json --split holdout

Writes one page that works offline, inspection_<child>_<split>.html in the run's folder, with the images of the surest
wrong answers in it, as the child saw them. The config is the one that the run left in its folder; overrides such as
--config.data.root=DIR come on top.
"""

import pathlib
import sys

from absl import flags as absl_flags

from bignas_jax.cli import flags
from bignas_jax.programs import memory
from bignas_jax.text import shown


def define(values: absl_flags.FlagValues) -> None:
    absl_flags.DEFINE_string("arch", "max", "max, min, a JSON file, or JSON", flag_values=values)
    absl_flags.DEFINE_enum(
        "split", "val", ["val", "holdout", "train"], "the images to look at", flag_values=values
    )
    absl_flags.DEFINE_string("checkpoint", "newest", "newest, best, or a step", flag_values=values)
    absl_flags.DEFINE_integer("wrong", 24, "images of wrong answers on the page", flag_values=values, lower_bound=0)
    absl_flags.DEFINE_string("out", "", "the page", flag_values=values)


def main() -> int:
    memory.keep_freed_memory()  # before the parse: a config may name classes whose modules import JAX
    options, arguments = flags.parse(sys.argv, __doc__, define, of_run=True)
    # JAX and torch are imported once the command line is known to be good.
    from bignas_jax.api import Run
    from bignas_jax.cli import scripts
    from bignas_jax.spaces.naming import read_architectures

    def work() -> None:
        run = Run(pathlib.Path(arguments.workdir), options, arguments.checkpoint)
        ((name, arch),) = read_architectures(run.space, [arguments.arch]).items()
        found = run.child(arch).inspect(arguments.split, arguments.wrong)
        default = pathlib.Path(arguments.workdir) / f"inspection_{name}_{arguments.split}.html"
        path = found.write(arguments.out or default)
        print(f"top-1 {100 * found.top1:.2f}% of {found.confusion.sum():,} images; {shown(str(path))}")

    return scripts.run(sys.argv[0], work)
