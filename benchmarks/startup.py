"""Seconds from the command to the first step: `python train.py`, on the full space of configs/bignas.py.

    python benchmarks/startup.py [--runs 3] [--cold] [--quick] [--json FILE]

The images are crops of scikit-learn's two photographs in a temporary folder; batch 8, 96 to 128 pixels, one worker. The
clock starts with the process and stops when the first step's figures are in metrics.jsonl. A first run, which is not
counted, fills the cache of compiled programs. `--cold` also times this first run, in a cache folder of its own, and
reports the size of that folder. `--quick` runs configs/digits.py instead.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
from PIL import Image
from report import Result, write
from sklearn.datasets import load_sample_images

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bignas_jax.kernels.native import toolchain  # noqa: E402

LIMIT = 600  # seconds
FULL = (
    "--config=configs/bignas.py", "--config.model.num_classes=2", "--config.batch_size=8", "--config.num_devices=1",
    "--config.space.resolution=(96, 112, 128)", "--config.data.image_size=128", "--config.data.eval_resize=144",
    "--config.data.holdout=20", "--config.data.num_workers=1", "--config.calibration.num_images=32",
    "--config.calibration.batch_size=8", "--config.evaluation.batch_size=8",
)  # fmt: skip


def write_photographs(root: pathlib.Path, count: int = 60) -> None:
    """Writes `count` crops of 240x200 pixels as root/{train,val}/{0,1}/*.jpg."""
    rng = np.random.default_rng(0)
    photographs = load_sample_images().images
    for split in ("train", "val"):
        for number in range(count):
            folder = root / split / str(number % 2)
            folder.mkdir(parents=True, exist_ok=True)
            top, left = rng.integers(0, 427 - 200), rng.integers(0, 640 - 240)
            crop = photographs[number % 2][top : top + 200, left : left + 240]
            Image.fromarray(crop).save(folder / f"{number}.jpg", quality=90)


def seconds_to_first_step(command: list[str], workdir: pathlib.Path, cache: pathlib.Path | None) -> float:
    """Runs the command until its first step is in metrics.jsonl, then ends it.

    Raises:
      SystemExit: the command ended before its first step, or reached no step in time.
    """
    environment = dict(os.environ)
    if cache is not None:
        environment["XDG_CACHE_HOME"] = str(cache)
    metrics = workdir / "metrics.jsonl"
    with open(workdir.with_suffix(".log"), "w") as log:
        start = time.perf_counter()
        process = subprocess.Popen(
            [*command, f"--workdir={workdir}"], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=environment
        )
        try:
            while time.perf_counter() - start < LIMIT:
                if metrics.exists() and stepped(metrics):
                    return time.perf_counter() - start
                if process.poll() is not None:
                    break
                time.sleep(0.02)
        finally:
            process.kill()
            process.wait()
    tail = workdir.with_suffix(".log").read_text()[-1000:]
    raise SystemExit(f"found no step in {time.perf_counter() - start:.0f} s, expected one; the command printed\n{tail}")


def stepped(metrics: pathlib.Path) -> bool:
    """Whether the file of metrics holds the first step or a later one."""
    for line in metrics.read_text().splitlines():
        try:
            if json.loads(line).get("step", 0) >= 1:
                return True
        except json.JSONDecodeError:
            pass  # the line is still being written
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="timed runs with a warm cache")
    parser.add_argument("--cold", action="store_true", help="time a run with an empty compilation cache, too")
    parser.add_argument("--json", help="file to write the results to")
    parser.add_argument("--quick", action="store_true", help="configs/digits.py, one run")
    args = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        command = [sys.executable, "train.py", "--config.max_steps=1000", "--config.log.every_steps=1"]
        if not args.quick:
            write_photographs(folder / "photographs")
            command += [*FULL, f"--config.data.root={folder / 'photographs'}"]
        cache = None
        if args.cold:
            cache = folder / "cache"
            (cache / "bignas_jax").mkdir(parents=True)
            (cache / "bignas_jax" / "native").symlink_to(toolchain.cache_folder())  # built by `make setup`
        first = seconds_to_first_step(command, folder / "first", cache)
        if args.cold:
            size = sum(path.stat().st_size for path in (cache / "bignas_jax" / "programs").glob("*"))
            results.append(Result("start to first step, cold compilation cache", first, "s", None, "lower", shown=True))
            results.append(Result("compiled programs in the cache", size / 1e6, "MB", None, "lower", shown=True))
        runs = 1 if args.quick else args.runs
        times = [seconds_to_first_step(command, folder / f"run{n}", cache) for n in range(runs)]
        print("seconds:", ", ".join(f"{t:.1f}" for t in times))
        target = None if args.quick else 15.0
        results.append(
            Result("start to first step, warm compilation cache", statistics.median(times), "s", target, "lower"))
    write("startup", results, args.quick, args.json)


if __name__ == "__main__":
    main()
