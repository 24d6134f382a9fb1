"""Name the classes of images with a child of a trained supernet.

    python -m bignas_jax predict --workdir exp/digits photo.jpg
    python -m bignas_jax predict --workdir exp/mine --arch exp/mine/children/NAME/architecture.json --top 5 a.png b.jpg

Images go through the run's own preprocessing. The child's batch-norm statistics are calibrated on training images at
the first call and kept in the run's folder. The config is the one that the run left in its folder; overrides such as
--config.data.root=DIR come on top.
"""

import sys

from absl import flags as absl_flags

from bignas_jax.cli import flags
from bignas_jax.programs import memory
from bignas_jax.text import aligned, shown


def define(values: absl_flags.FlagValues) -> None:
    absl_flags.DEFINE_string("arch", "max", "max, min, a JSON file, or JSON", flag_values=values)
    absl_flags.DEFINE_string("checkpoint", "newest", "newest, best, or a step", flag_values=values)
    absl_flags.DEFINE_integer("top", 3, "likeliest classes of each image", flag_values=values, lower_bound=1)
    absl_flags.DEFINE_enum(
        "statistics", "calibrated", ["calibrated", "stored"],
        "of batch norm; stored: what an imported checkpoint keeps for max", flag_values=values
    )  # fmt: skip


def main() -> int:
    memory.keep_freed_memory()  # before the parse: a config may name classes whose modules import JAX
    options, arguments = flags.parse(sys.argv, __doc__, define, of_run=True, positional="IMAGE...")
    # JAX and torch are imported once the command line is known to be good.
    import pathlib

    from bignas_jax.api import Run
    from bignas_jax.cli import scripts

    def work() -> None:
        run = Run(pathlib.Path(arguments.workdir), options, arguments.checkpoint)
        child = run.child(arguments.arch, statistics=arguments.statistics)
        predictions = child.predict(arguments.image, arguments.top)
        print(table(arguments.image, predictions))
        where = shown(f"{child}, of {arguments.workdir}")
        print(f"\n{where}")

    return scripts.run(sys.argv[0], work)


def table(images, predictions) -> str:
    """A line for each image: its name, then each class with its probability."""
    ranks = len(predictions[0].names)
    head = ["image", *(text for rank in range(ranks) for text in ("class" if not rank else f"{rank + 1}.", "%"))]
    body = []
    for image, found in zip(images, predictions, strict=True):
        pairs = zip(found.names, found.probabilities, strict=True)
        body.append([shown(image), *(text for name, p in pairs for text in (shown(name), f"{100 * p:.1f}"))])
    return aligned(head, body)
