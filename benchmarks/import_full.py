"""Imports full-size supernets from PyTorch's files: the import's time and size, and whether the logits agree.

    python benchmarks/import_full.py
    python benchmarks/import_full.py --quick        # without eval.py

It makes a PyTorch-BigNAS and an AttentiveNAS checkpoint from seeded numbers. They have the released form: names begin
with `module.`, every block's tensors are there twice, and there are tracking copies and optimizer state. The command
imports both. The logits of BigNAS's smallest child and AttentiveNAS's a0 are compared with the logits that the released
PyTorch code computed from the same numbers (tests/data). Then eval.py evaluates both on a small folder of generated
images of 1,000 classes; the scores mean nothing. It takes minutes on 2 CPU cores.
"""

import argparse
import json
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile
import time
from functools import partial

ROOT = pathlib.Path(__file__).resolve().parent.parent
DATA = ROOT / "tests" / "data"
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from flax import nnx  # noqa: E402
from PIL import Image  # noqa: E402

from bignas_jax.config.files import load_run_options  # noqa: E402
from bignas_jax.nets.mode import Mode  # noqa: E402
from bignas_jax.nets.supernet import Supernet  # noqa: E402
from bignas_jax.programs.devices import make_mesh  # noqa: E402
from bignas_jax.runs.checkpoint import Checkpoints  # noqa: E402
from bignas_jax.spaces.architecture import Architecture  # noqa: E402
from bignas_jax.spaces.layers import statistics  # noqa: E402
from bignas_jax.spaces.registry import space_of  # noqa: E402

# By recipe: the recorded case, the shapes, the entry of the weights, and whether torch.save's old form is used.
SYSTEMS = {
    "bignas": ("bignas_min", "state_dict_names.json", "model_state", False),
    "attentive_nas": ("attentive_a0", "attentive_state_dict_names.json", "state_dict", True),
}


def released(names: pathlib.Path) -> dict[str, torch.Tensor]:
    """A seeded state dict as in released files: prefixed names, twins in one storage, tracking copies."""
    seeded = runpy.run_path(str(DATA / "seeded_weights.py"))["state_dict"](names)
    found = {}
    for name, array in seeded.items():
        tensor = torch.tensor(array)
        found[f"module.{name}"] = tensor
        found[f"module.{name.replace('.mobile_inverted_conv.', '.conv.')}"] = tensor
        if name.endswith(".bn.bn.running_var"):
            norm = f"module.{name.removesuffix('bn.running_var')}"
            found[f"{norm}bn.num_batches_tracked"] = torch.tensor(5)
            found |= {f"{norm}bn_tracking.{n}.running_var": tensor.clone() for n in (0, 1)}
    return found


def write_checkpoint(path: pathlib.Path, system: str) -> None:
    """Writes the file of a PyTorch run: the weights, an epoch, and a momentum of the same size."""
    _, names, entry, old = SYSTEMS[system]
    weights = released(DATA / names)
    momentum = {number: torch.zeros_like(tensor) for number, tensor in enumerate(weights.values())}
    content = {"epoch": 360, entry: weights, "optimizer": {"state": momentum}}
    torch.save(content, path, _use_new_zipfile_serialization=not old)


def run(*command) -> float:
    """Seconds of a command, which must succeed."""
    start = time.perf_counter()
    ended = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True)
    if ended.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{ended.stdout}{ended.stderr}")
    print(ended.stdout.strip(), "\n")
    return time.perf_counter() - start


def recorded_arch(case: str) -> dict:
    """The architecture of a recorded case."""
    return json.loads((DATA / "cases.json").read_text())[case]["arch"]


def differences(workdir: pathlib.Path, case: str) -> dict[str, float]:
    """The greatest difference from the recorded logits, as a fraction of the largest one, by mode."""
    options = load_run_options(workdir / "config.json")
    space, classes = space_of(options.space), options.model.num_classes
    arch = Architecture.from_dict(recorded_arch(case))
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Supernet(space, classes, rngs=nnx.Rngs(0))))
    like, mesh = nnx.to_pure_dict(state), make_mesh(1, {})
    checkpoints = Checkpoints(workdir, read_only=True)
    try:
        params, _ = checkpoints.weights(like, mesh)
        stored = checkpoints.statistics(statistics(space.layout(space.biggest)), mesh)
    finally:
        checkpoints.close()

    @jax.jit
    def forward(x, statistics):
        mode = Mode(statistics=statistics, collect=statistics is None)
        return nnx.merge(graphdef, params)(x.transpose(0, 2, 3, 1), arch, None, mode)

    def images(seed, number):
        drawn = np.random.default_rng(seed).standard_normal((number, 3, arch.resolution, arch.resolution))
        return drawn.astype(np.float32)

    # Each image is there twice. This does not change the statistics, and batches of four need one program less.
    x = np.tile(images(0, 2), (2, 1, 1, 1))
    batches = [forward(images(seed, 4), None)[1] for seed in (1, 2, 3)]
    calibrated = jax.tree.map(lambda *values: sum(values) / 3, *batches)
    cut = {name: tuple(a[: len(b)] for a, b in zip(stored[name], own, strict=True)) for name, own in calibrated.items()}
    recorded = np.load(DATA / "cases.npz")
    modes = {"train": None, "eval": cut, "calib": calibrated}
    return {mode: difference(forward(x, statistics)[0][:2], recorded[f"{mode}_{case}"])
            for mode, statistics in modes.items()}  # fmt: skip


def difference(found, expected) -> float:
    """The greatest difference, as a fraction of the largest expected value."""
    return float(np.abs(np.asarray(found, np.float64) - expected).max() / np.abs(expected).max())


def write_images(root: pathlib.Path, classes: int, side: int = 48, train: int = 1) -> None:
    """Writes smooth JPEG images for each class, `train` of them to train/ and one to val/. This is fast."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in range(classes):
            folder = root / split / f"{label:04d}"
            folder.mkdir(parents=True)
            for number in range(train if split == "train" else 1):
                pixels = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
                pixels.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg")


def evaluate(workdir: pathlib.Path, images: pathlib.Path, *arguments) -> float:
    """Seconds of eval.py with settings for a few images on a CPU."""
    return run(
        "eval.py", "--workdir", workdir, *arguments, f"--config.data.root={images}",
        "--config.data.image_size=192", "--config.data.eval_resize=219", "--config.data.holdout=0",
        "--config.data.num_workers=1", "--config.calibration.num_images=64", "--config.calibration.batch_size=16",
        "--config.evaluation.batch_size=50",
    )  # fmt: skip


def import_system(scratch: pathlib.Path, system: str) -> pathlib.Path:
    """Writes and imports a system's checkpoint, prints time and sizes, and returns the run's folder."""
    case, old = SYSTEMS[system][0], SYSTEMS[system][3]
    file, workdir = scratch / f"{system}.pth{'.tar' if old else ''}", scratch / system
    write_checkpoint(file, system)
    importing = partial(run, "-m", "bignas_jax", "import", file, "--config", f"configs/{system}.py")
    seconds = importing("--workdir", workdir)
    size = sum(path.stat().st_size for path in workdir.rglob("*") if path.is_file())
    print(f"{system}: imported {file.stat().st_size / 1e6:,.1f} MB in {seconds:.1f} s, {size / 1e6:,.1f} MB written")
    found = differences(workdir, case)
    print(f"{case}, greatest difference of a logit / largest logit:",
          ", ".join(f"{mode} {value:.1e}" for mode, value in found.items()), flush=True)  # fmt: skip
    if max(found.values()) > 1e-4:
        raise SystemExit(f"{case}: the logits are not those of the released code")
    return workdir


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="leave eval.py out")
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} CPU cores, {jax.devices()[0].device_kind}\n")
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        workdirs = {system: import_system(scratch, system) for system in SYSTEMS}
        if arguments.quick:
            return 0
        write_images(scratch / "images", classes=1000)
        a0 = scratch / "a0.json"
        a0.write_text(json.dumps(recorded_arch("attentive_a0")))
        seconds = {
            "BigNAS's smallest child": evaluate(workdirs["bignas"], scratch / "images", "--arch", "min"),
            "AttentiveNAS's a0": evaluate(workdirs["attentive_nas"], scratch / "images", "--arch", a0),
        }
        for name, taken in seconds.items():
            print(f"{name}: eval.py on 64 + 1,000 images of 192 pixels in {taken:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
