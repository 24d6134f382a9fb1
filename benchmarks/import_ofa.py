"""Imports full-size Once-for-All supernets from files in the released form, evaluates and exports their slices.

    python benchmarks/import_ofa.py
    python benchmarks/import_ofa.py --only ofa_mbv3_w1.0 [--quick]        # without eval.py and export.py

It makes the checkpoint of each supernet from seeded numbers, with the released names. The command imports it. The
logits of recorded slices, on the stored statistics, are compared with those that Once-for-All's own code computed from
the same numbers (tests/data/ofa). Then eval.py evaluates MAX and MIN on a folder of generated images of 1,000 classes
(the scores mean nothing), and export.py writes MIN as ONNX and runs it back. It takes minutes a supernet on 2 cores.
"""

import argparse
import os
import pathlib
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "tests")]

import jax  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from flax import nnx  # noqa: E402
from import_full import difference, run, write_images  # noqa: E402
from ofa_cases import CASES, LOGITS, RECIPES, images, state_dict  # noqa: E402

from bignas_jax.config.files import load_run_options  # noqa: E402
from bignas_jax.nets.mode import Mode  # noqa: E402
from bignas_jax.nets.supernet import Supernet  # noqa: E402
from bignas_jax.programs.devices import make_mesh  # noqa: E402
from bignas_jax.runs.checkpoint import Checkpoints  # noqa: E402
from bignas_jax.spaces.layers import statistics  # noqa: E402
from bignas_jax.spaces.registry import space_of  # noqa: E402


def write_checkpoint(path: pathlib.Path, name: str) -> None:
    """Writes the supernet's file as released ones are, with the counters of batch norm."""
    tensors = {key: torch.from_numpy(array) for key, array in state_dict(name).items()}
    for key in list(tensors):
        if key.endswith("running_var"):
            tensors[key.replace("running_var", "num_batches_tracked")] = torch.tensor(5)
    torch.save({"state_dict": tensors}, path)


def differences(workdir: pathlib.Path, name: str) -> dict[str, float]:
    """The greatest difference from the recorded logits on stored statistics, as a fraction of the largest, by slice."""
    options = load_run_options(workdir / "config.json")
    space = space_of(options.space)
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Supernet(space, options.model.num_classes, rngs=nnx.Rngs(0))))
    like, mesh = nnx.to_pure_dict(state), make_mesh(1, {})
    checkpoints = Checkpoints(workdir, read_only=True)
    try:
        params, _ = checkpoints.weights(like, mesh)
        stored = checkpoints.statistics(statistics(space.layout(space.biggest)), mesh)
    finally:
        checkpoints.close()
    found, mode = {}, Mode(statistics=stored)
    for case, values in CASES[name].items():
        if (key := f"{name}/eval_{case}") in LOGITS:
            arch = space.read(values["arch"])
            logits = jax.jit(lambda p, x, arch=arch: nnx.merge(graphdef, p)(x, arch, None, mode)[0])
            found[case] = difference(np.asarray(logits(params, images(0, 2, arch.resolution)))[:, :200], LOGITS[key])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=RECIPES, help="one supernet")
    parser.add_argument("--quick", action="store_true", help="leave eval.py and export.py out")
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} CPU cores, {jax.devices()[0].device_kind}\n")
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        if not arguments.quick:
            write_images(scratch / "images", classes=1000, train=2)
        for name in [arguments.only] if arguments.only else RECIPES:
            file, workdir = scratch / f"{name}.pth", scratch / name
            write_checkpoint(file, name)
            recipe = f"configs/{RECIPES[name].__name__.split('.')[-1]}.py"
            seconds = run("-m", "bignas_jax", "import", file, "--config", recipe, "--workdir", workdir)
            print(f"{name}: imported {file.stat().st_size / 1e6:,.1f} MB in {seconds:.1f} s")
            found = differences(workdir, name)
            print(f"{name}, greatest difference of a logit / largest logit:",
                  ", ".join(f"{case} {value:.1e}" for case, value in found.items()), flush=True)  # fmt: skip
            if not found or max(found.values()) > 1e-4:
                raise SystemExit(f"{name}: the logits are not those of Once-for-All's code")
            if arguments.quick:
                continue
            settings = [
                "--workdir", workdir, f"--config.data.root={scratch / 'images'}", "--config.data.holdout=1000",
                "--config.data.num_workers=1", "--config.calibration.num_images=64",
                "--config.calibration.batch_size=16", "--config.evaluation.batch_size=50",
            ]  # fmt: skip
            seconds = run("eval.py", *settings, "--arch", "max", "--arch", "min")
            print(f"{name}: eval.py of MAX and MIN on 64 + 1,000 images in {seconds:.0f} s")
            seconds = run("export.py", *settings, "--arch", "min", "--format", "onnx")
            print(f"{name}: export.py of MIN, run back, in {seconds:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
