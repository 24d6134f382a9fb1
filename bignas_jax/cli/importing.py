"""Import a supernet that PyTorch-BigNAS, AttentiveNAS, AlphaNet or Once-for-All trained, as a run's folder.

    python -m bignas_jax import CHECKPOINT --config configs/bignas.py --workdir exp/imported
    python -m bignas_jax import FILE.pth.tar --config configs/attentive_nas.py --weights ema
    python -m bignas_jax import ofa_mbv3_d234_e346_k357_w1.0 --config configs/ofa_mbv3.py
    python -m bignas_jax import FOLDER --config configs/ofa_mbv3.py

CHECKPOINT is a .pth, .pt, .tar or .safetensors file with the state dict of the whole supernet; nothing that a file
holds beside it is run. The config's space and number of classes must be the ones it was trained with; its data need
not be there yet. Then eval.py, search.py and export.py work on the folder, and train.py goes on from the weights.
FOLDER is a specialised network of Once-for-All, the files net.config, run.config and init: its network, classes and
resolution take the place of the config's.
"""

import os
import pathlib
import shlex
import sys

from absl import flags as absl_flags

from bignas_jax.cli import flags, scripts
from bignas_jax.config.options import Options
from bignas_jax.errors import WeightsError
from bignas_jax.interop.imports.import_torch import import_checkpoint, table
from bignas_jax.interop.imports.ofa_nets import is_folder, specialised
from bignas_jax.spaces.registry import space_of
from bignas_jax.text import shown


def following(workdir: str, options: Options) -> str:
    """What to do next, as text: the commands that go on from an import, with the images where none are known."""
    known = options.data.source not in ("folder", "tar", "arrow") or pathlib.Path(options.data.root).is_dir()
    folder = f"--workdir {shlex.quote(workdir)}{'' if known else ' --config.data.root=ROOT'}"
    if space_of(options.space).size == 1:
        commands = (f"eval {folder} --arch max --statistics stored", f"export {folder} --arch max")
    else:
        commands = (f"eval {folder} --arch max --arch min", f"eval {folder} --arch max --statistics stored",
                    f"search {folder}")  # fmt: skip
    return "\n".join([
        f"next{'' if known else ', with your images in ROOT'}:\n",
        *(f"python -m bignas_jax {command}" for command in commands),
    ])


def define(values: absl_flags.FlagValues) -> None:
    absl_flags.DEFINE_enum(
        "weights", "", ["", "model", "ema"], "which to take where the file has both", flag_values=values
    )


def main() -> int:
    # Nothing is computed here, so JAX's memory (memory.keep_freed_memory) does not matter.
    options, arguments = flags.parse(sys.argv, __doc__, define, positional="CHECKPOINT")

    def work() -> None:
        run, file = options, arguments.checkpoint
        try:
            if is_folder(file):
                run, file = specialised(run, file)
            result = import_checkpoint(run, arguments.workdir, file, arguments.weights)
        except WeightsError as error:
            if error.details:
                print(*map(shown, error.details.split("\n")), sep="\n", file=sys.stderr)
            raise
        where = f"entry {result.entry}" if result.entry else "the whole file"
        about = "".join(f", {name} {number}" for name, number in result.counters.items())
        print(f"{shown(os.path.basename(result.file))}: {shown(where)}{about}\n\n{table(result, run)}")
        print(f"\nimported into {shown(arguments.workdir)}, as step 0; {following(arguments.workdir, run)}")

    return scripts.run(sys.argv[0], work)
