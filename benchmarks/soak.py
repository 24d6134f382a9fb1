"""A long run, and a loader that meets nothing but corrupt files: whether anything grows that should not.

    python benchmarks/soak.py [--steps 3000] [--files 20000] [--json FILE]

A tiny supernet trains for all the steps, with a worker that reads its images, evaluations and checkpoints, while its
memory, handles, threads and processes are read from /proc. After the first 300 steps nothing of it may grow: what a
window of 300 steps holds at least is compared with what the others do, because a save or an evaluation holds more for
a moment. Handles, threads and processes are few, a moment of rest may be missed in a window, and the last window sees
the end of the run: of what the windows hold at least, the median of the last third is held against that of the first.
JAX says on stderr what it compiles; after those steps that must be nothing.

Then a worker of a loader reads a folder of corrupt files of many kinds, each small and each once.
"""

import argparse
import io
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import numpy as np  # noqa: E402
from lab import ENVIRONMENT, RECIPE, give_kernels  # noqa: E402
from PIL import Image  # noqa: E402
from report import Fault, Result, write  # noqa: E402
from watch import Sample, descendants, last_record, sample  # noqa: E402

FLAT = 2.0  # percent
GLANCE = 0.1  # seconds between samples
STEPS_PER_EPOCH = 25  # of RECIPE
COMPILES = b"Finished XLA compilation"  # what JAX_LOG_COMPILES says of each


def train(folder: pathlib.Path, steps: int, evaluations: int, workers: int = 1) -> tuple[list[Sample], list[int]]:
    """Runs train.py to its end.

    Returns:
      What it held at its steps, and for each compiled program the step that had been logged before it.
    """
    (folder / "tiny.py").write_text(RECIPE)
    give_kernels(folder, "cache")
    epochs = -(-steps // STEPS_PER_EPOCH)
    words = [sys.executable, str(ROOT / "train.py"), "--config", str(folder / "tiny.py")]
    words += ["--workdir", str(folder / "run")]
    words += [f"--config.epochs={epochs}", f"--config.max_steps={steps}", f"--config.data.num_workers={workers}"]
    words += ["--config.checkpoint.every_steps=50", f"--config.evaluation.every_epochs={epochs / evaluations}"]
    environment = ENVIRONMENT | {"JAX_LOG_COMPILES": "1", "XDG_CACHE_HOME": str(folder / "cache")}
    samples, compiles, cut, metrics = [], [], b"", folder / "run" / "metrics.jsonl"
    with open(folder / "stderr", "wb") as out, open(folder / "stderr", "rb") as said:
        process = subprocess.Popen(words, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=out)
        while process.poll() is None:
            time.sleep(GLANCE)
            step = last_record(metrics).get("step", 0)
            text = cut + said.read()
            compiles += [step] * text.count(COMPILES)
            cut = text[-len(COMPILES) + 1 :]  # a line may come in two parts
            now = sample(process.pid, step)
            samples += [now] if now and step else []
    if process.returncode:
        said = (folder / "stderr").read_text()[-2000:]
        sys.exit(f"soak.py: {' '.join(words)} ended with {process.returncode}: {said}")
    return samples, compiles


def windows(samples: Sequence[Sample], warm_up: int) -> list[list[Sample]]:
    """The samples after the first `warm_up` steps, by windows of as many steps; a last one that is cut is left out."""
    last = max(s.at for s in samples)
    starts = range(warm_up, last - warm_up + 1, warm_up)
    return [w for start in starts if (w := [s for s in samples if start < s.at <= start + warm_up])]


def growth(figures: Sequence[float]) -> float:
    """By how many percent the greatest is above the first."""
    return 100 * (max(figures) / figures[0] - 1)


def gained(figures: Sequence[int]) -> float:
    """How much greater the median of the last third of the figures is than that of the first."""
    part = -(-len(figures) // 3)
    return statistics.median(figures[-part:]) - statistics.median(figures[:part])


def of_training(samples: Sequence[Sample], compiles: Sequence[int], warm_up: int) -> list[Result]:
    """The figures of a training."""
    parts = windows(samples, warm_up)
    if len(parts) < 2:
        sys.exit(f"soak.py: found {max(s.at for s in samples)} steps, expected at least {3 * warm_up}, two windows")
    floors = {name: [min(getattr(s, name) for s in part) for part in parts]
              for name in ("resident", "handles", "threads", "processes")}  # fmt: skip
    peaks = [max(s.resident for s in part) for part in parts]
    return [
        Result("steps", max(s.at for s in samples), ""),
        Result("resident memory", floors["resident"][-1] / 1e6, "MB"),
        Result(f"growth of it after {warm_up} steps", growth(floors["resident"]), "%", FLAT, better="lower"),
        Result("growth of its peaks", growth(peaks), "%", FLAT, better="lower"),
        *(Result(f"{name} gained after {warm_up} steps", gained(found), "", 0, better="lower")
          for name, found in floors.items() if name != "resident"),
        Result("most threads of tensorstore's pool", max(s.pooled for s in samples), ""),
        Result("programs compiled before", sum(step < warm_up for step in compiles), ""),
        Result("programs compiled after", sum(step >= warm_up for step in compiles), "", 0, better="lower"),
    ]  # fmt: skip


def corrupt(number: int) -> tuple[str, bytes]:
    """A corrupt image: the suffix of its file, and its bytes."""
    rng = random.Random(number)
    kind = number % 8
    if kind == 0:
        return ".jpg", b""
    if kind == 1:
        return ".png", rng.randbytes(200)
    if kind == 2:  # a header that asks for more pixels than are allowed
        size = (60_000).to_bytes(4, "big")
        return ".png", _png(b"IHDR" + size + size + b"\x08\x02\x00\x00\x00", b"IDAT" + zlib.compress(b"0"))
    form, suffix = (("JPEG", ".jpg"), ("PNG", ".png"), ("GIF", ".gif"), ("WEBP", ".webp"), ("BMP", ".bmp"))[kind - 3]
    whole = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(whole, form)
    return suffix, whole.getvalue()[: rng.randrange(4, len(whole.getvalue()) * 2 // 3)]


def _png(*chunks: bytes) -> bytes:
    parts = [len(c[4:]).to_bytes(4, "big") + c + zlib.crc32(c).to_bytes(4, "big") for c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def write_images(root: pathlib.Path, files: int) -> None:
    """Two classes of corrupt training images, and a whole one each for validation."""
    for label in range(2):
        for split in ("train", "val"):
            (root / split / str(label)).mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(root / "val" / str(label) / "whole.png")
    for number in range(files):
        suffix, content = corrupt(number)
        (root / "train" / str(number % 2) / f"{number:06d}{suffix}").write_bytes(content)


def read(root: pathlib.Path, batch: int = 10) -> Iterator[tuple[int, Sample]]:
    """Has a worker read all training images: the corrupt ones so far, and what the worker holds, after each batch."""
    from bignas_jax.config import base
    from bignas_jax.config.options import Augment, Data
    from bignas_jax.data import Loader, open_dataset

    augment = Augment(crop="none", crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), padding=0, flip=0.0, policy="none",
                      rand_ops=0, rand_magnitude=0, color_jitter=(0.0, 0.0, 0.0, 0.0))  # fmt: skip
    data = Data(source="folder", root=str(root), train_split="train", val_split="val", image_size=16, eval_resize=16,
                mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), num_workers=1, holdout=0, on_corrupt="skip",
                max_pixels=base().data.max_pixels, augment=augment)  # fmt: skip
    batches = Loader(open_dataset(data), "train", batch_size=batch).once()
    (worker,) = [pid for pid in descendants(os.getpid()) if b"spawn_main" in _command(pid)]
    skipped = 0
    for found in batches:
        skipped += found["skipped"]
        yield skipped, sample(worker, skipped)


def _command(pid: int) -> bytes:
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def of_loader(found: Sequence[tuple[int, Sample | None]], files: int, warm_up: int) -> list[Result]:
    """The figures of a worker that read corrupt files."""
    total = found[-1][0]
    parts = windows([held for _, held in found if held], warm_up)
    floors = [min(s.resident for s in part) for part in parts]
    handles = [min(s.handles for s in part) for part in parts]
    return [
        Result("corrupt files met", total, f"of {files:,}", files),
        Result("resident memory of the worker", floors[-1] / 1e6, "MB"),
        Result(f"growth of it after {warm_up} files", growth(floors), "%", FLAT, better="lower"),
        Result(f"handles gained after {warm_up} files", max(handles) - handles[0], "", 0, better="lower"),
    ]


def faults(training: Sequence[Result], loader: Sequence[Result]) -> list[Fault]:
    """The rows of the README's table: a long run counts as one, and each corrupt file."""
    rows = []
    if training:
        shown = [f"{r.name}: {r.value:.2g} {r.unit}".strip() for r in training[2:] if r.target is not None]
        bad = int(not all(r.reached for r in training))
        rows.append(Fault(f"a run of {training[0].value:,} steps ({'; '.join(shown)})", 1, bad))
    if loader:
        grown = ", ".join(f"{r.value:.2g} {r.unit}".strip() for r in loader[2:])
        met = int(loader[0].value)
        bad = 0 if all(r.reached for r in loader) else met
        rows.append(Fault(f"a corrupt file for a loader's worker (growth of memory and handles: {grown})", met, bad))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--warm-up", type=int, default=300, help="steps that may still grow; the length of a window")
    parser.add_argument("--evaluations", type=int, default=10, help="on the held-out images")
    parser.add_argument("--files", type=int, default=20_000, help="corrupt ones for the loader")
    parser.add_argument("--quick", action="store_true", help="90 steps that are read in the process, and 200 files")
    parser.add_argument("--json", help="file to write the results to")
    options = parser.parse_args()
    if options.quick:
        options.steps, options.warm_up, options.evaluations, options.files = 90, 30, 3, 200
    training, loader = [], []
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        if options.steps:
            held, compiles = train(pathlib.Path(folder), options.steps, options.evaluations, int(not options.quick))
            training = of_training(held, compiles, options.warm_up)
        if options.files:
            write_images(pathlib.Path(folder) / "images", options.files)
            found = list(read(pathlib.Path(folder) / "images"))
            loader = of_loader(found, options.files, options.files // 10)
    results = training + loader
    write("soak", results, options.quick, options.json, faults=faults(training, loader))
    return 0 if all(result.reached for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
