"""The commands of the package.

    python -m bignas_jax train --config configs/digits.py
    python -m bignas_jax search --workdir exp/digits
"""

import importlib
import sys

from bignas_jax.cli.stopping import script

# By name: the module in `cli`, and what it does.
COMMANDS = {
    "train": ("train", "train a supernet, or one architecture of it"),
    "search": ("searching", "search a trained supernet"),
    "eval": ("evaluate", "evaluate architectures of a trained supernet"),
    "predict": ("predict", "name the classes of images with a child of a trained supernet"),
    "inspect": ("inspecting", "show what a child takes the classes for, and the images it is surest and wrong about"),
    "export": ("export", "take children out to ONNX, StableHLO, PyTorch, safetensors"),
    "latency": ("latency", "measure a space's blocks on another device: export them, check the table that comes back"),
    "import": ("importing", "import a supernet that PyTorch-BigNAS, AttentiveNAS, AlphaNet or Once-for-All trained"),
    "init": ("beginning", "write a recipe that fits a folder of images"),
    "index": ("indexing", "index a folder of tar shards, to train on them"),
    "doctor": ("doctor", "what this machine is, and whether it computes what it should"),
    "report": ("reporting", "write the report of a finished search again"),
}


def usage() -> str:
    lines = [f"  {name:<8}{words}" for name, (_, words) in COMMANDS.items()]
    return "\n".join(["python -m bignas_jax COMMAND [FLAGS], and --help behind a command:", "", *lines])


def main() -> int:
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("--help", "-help", "-h"):
        print(usage())
        return 0
    if name not in COMMANDS:
        print(f"bignas_jax: found the command {name!r}, expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    module = importlib.import_module(f"bignas_jax.cli.{COMMANDS[name][0]}")
    sys.argv = [f"bignas_jax {name}", *rest]
    return module.main()


if __name__ == "__main__":
    script(main)
