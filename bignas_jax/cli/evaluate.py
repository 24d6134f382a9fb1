"""Evaluate architectures of a trained supernet: calibrate each on training images, then score it.

    python eval.py
    python eval.py --config configs/cifar10.py --arch max --arch min --arch child.json --split val
    python eval.py --arch '{"resolution": 16, ...}' --checkpoint best
    python eval.py --workdir exp/imported --arch max --statistics stored
    python eval.py --arch max --quantized

The config is the one that the run left in its folder; overrides such as --config.data.root=DIR come on top.
"""

import sys

from absl import flags as absl_flags

from bignas_jax.cli import flags
from bignas_jax.programs import memory
from bignas_jax.text import one_line, shown


def define(values: absl_flags.FlagValues) -> None:
    absl_flags.DEFINE_multi_string(
        "arch", ["max", "min"], "max, min, a JSON file, or JSON; may be repeated", flag_values=values
    )
    absl_flags.DEFINE_enum(
        "split", "val", ["val", "holdout", "train"], "the images to score on", flag_values=values
    )
    absl_flags.DEFINE_string("checkpoint", "newest", "newest, best, or a step", flag_values=values)
    absl_flags.DEFINE_enum(
        "statistics", "calibrated", ["calibrated", "stored"],
        "of batch norm; stored: what an imported checkpoint keeps for max", flag_values=values
    )  # fmt: skip
    absl_flags.DEFINE_bool(
        "quantized", False, "round weights and activations to 8 bits, as an exported onnx-int8 does", flag_values=values
    )


def main() -> int:
    memory.keep_freed_memory()  # before the parse: a config may name classes whose modules import JAX
    options, arguments = flags.parse(sys.argv, __doc__, define, of_run=True)
    # JAX and torch are imported once the command line is known to be good.
    from bignas_jax.cli import scripts
    from bignas_jax.runs import assess as reporting

    def work() -> None:
        rows, step, changed = reporting.evaluate_run(
            options,
            arguments.workdir,
            arguments.arch,
            arguments.split,
            arguments.checkpoint,
            stored=arguments.statistics == "stored",
            rounded=arguments.quantized,
        )
        if options.distributed.process_id:
            return
        print(reporting.table(rows))
        path = reporting.write(rows, arguments.workdir, arguments.split, step, changed=changed)
        where = shown(f"step {step} of {arguments.workdir} on the {arguments.split} images; written to {path}")
        print(f"\n{where}")
        if changed:
            print(one_line(f"not the run's own figures: {'; '.join(changed)}"))

    return scripts.run(sys.argv[0], work)
