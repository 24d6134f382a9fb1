"""Take children out of a trained supernet: ONNX, StableHLO, PyTorch, safetensors, each run back on held-out images.

    python export.py --arch max
    python export.py --config configs/cifar10.py --arch exp/cifar10/children/NAME/architecture.json --format onnx,torch
    python export.py --arch min --nofold --batch 1 --checkpoint best
    python export.py --arch max --features_only
    python export.py --arch max --arch min --format onnx,onnx-int8

Writes children/<name>/ in the run's folder: the child's slice of the weights with its calibrated statistics, batch norm
folded into the convolutions (--nofold keeps it), preprocessing.json with the class names, and the comparison in
export.json. A file whose logits differ from the supernet's by more than 1e-3 of the largest is an error.
--format onnx-int8 writes child-int8.onnx, quantised to 8 bits on training images, and prints its top-1 beside float's;
litert and litert-int8 write the same for LiteRT, where litert-torch (and ai-edge-quantizer) are installed.
The config is the one that the run left in its folder; overrides such as --config.data.root=DIR come on top.
"""

import sys

from absl import flags as absl_flags

from bignas_jax.cli import flags
from bignas_jax.programs import memory
from bignas_jax.text import shown

FORMATS = ["onnx", "stablehlo", "torch", "safetensors"]


def define(values: absl_flags.FlagValues) -> None:
    absl_flags.DEFINE_multi_string(
        "arch", ["max"], "max, min, a JSON file, or JSON; may be repeated", flag_values=values
    )
    absl_flags.DEFINE_list(
        "format", FORMATS, "what to write, by commas; onnx-int8, litert, litert-int8 as well", flag_values=values
    )
    absl_flags.DEFINE_string("checkpoint", "newest", "newest, best, or a step", flag_values=values)
    absl_flags.DEFINE_bool("fold", True, "fold batch norm into the convolutions", flag_values=values)
    absl_flags.DEFINE_bool(
        "features_only", False, "write features.onnx, which gives the feature maps, in place of all", flag_values=values
    )
    absl_flags.DEFINE_integer("batch", 0, "images of a call; 0 leaves it open", flag_values=values)
    absl_flags.DEFINE_integer("images", 128, "held-out images to compare on", flag_values=values)
    absl_flags.DEFINE_string(
        "out", "", "gets a folder for each child; by default children in the run's folder", flag_values=values
    )


def main() -> int:
    memory.keep_freed_memory()  # before the parse: a config may name classes whose modules import JAX
    options, arguments = flags.parse(sys.argv, __doc__, define, of_run=True)
    # JAX and torch are imported once the command line is known to be good.
    from bignas_jax.cli import scripts
    from bignas_jax.interop.exports import comparing, export

    def work() -> None:
        every = arguments.features_only and arguments.format == FORMATS
        formats = ["onnx"] if every else arguments.format
        how = export.Form(formats, arguments.fold, arguments.batch, arguments.images, arguments.features_only)
        rows, where = [], (arguments.checkpoint, arguments.out)
        for row in export.export_run(options, arguments.workdir, arguments.arch, how, *where):
            rows.append(row)
            lines = [*comparing.table(row).split("\n"), f"in {row['folder']}/"]
            print("", *map(shown, lines), sep="\n", flush=True)
        comparing.check(rows)

    return scripts.run(sys.argv[0], work)
