"""Images a second on one core, from JPEG files to a batch, beside torchvision's common pipeline.

    python benchmarks/loader.py [--images 300] [--batch-size 32] [--rounds 40] [--workers 2] [--quick] [--json FILE]

The files are crops of about 500x400 pixels from scikit-learn's two sample photographs, at quality 90. Both sides read
whole batches in this process, on one core and one thread, in turns: file, decoding, random resized crop to 224, flip,
AutoAugment (in one of two runs), collation. The peer is ImageFolder (PIL) in a DataLoader with RandomResizedCrop,
RandomHorizontalFlip, AutoAugment, ToTensor and Normalize, all with their defaults. By default it resizes bilinearly;
with "bicubic" it resizes as we do. Our batches are uint8; the step normalises them on its device. Two more figures have
no target: reading files of 7 megapixels (the photographs enlarged), and reading with --workers worker processes on all
cores.
"""

import argparse
import contextlib
import itertools
import os
import pathlib
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from bignas_jax.programs import memory  # noqa: E402

memory.keep_freed_memory()  # this helps the peer, whose batches take four times the bytes

import numpy as np  # noqa: E402
import report  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from sklearn.datasets import load_sample_images  # noqa: E402
from torchvision import transforms  # noqa: E402
from torchvision.datasets import ImageFolder  # noqa: E402

from bignas_jax.config.options import Data  # noqa: E402
from bignas_jax.data import Loader, open_dataset  # noqa: E402
from configs import bignas  # noqa: E402

SIZE = 224
TARGETS = {"none": 2.0, "imagenet": 1.5}
TITLES = {"none": "crop and flip", "imagenet": "crop, flip and AutoAugment"}


def write_photographs(root: pathlib.Path, count: int, seed: int = 0) -> None:
    """Writes `count` different JPEG files of 450-550 x 360-427 pixels as root/{train,val}/{0,1}/*, few in val."""
    rng = np.random.default_rng(seed)
    photographs = load_sample_images().images
    for number in range(count + 4):
        label = number % 2
        folder = root / ("train" if number < count else "val") / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        width, height = int(rng.integers(450, 551)), int(rng.integers(360, 428))
        whole = photographs[label]
        top, left = rng.integers(0, whole.shape[0] - height + 1), rng.integers(0, whole.shape[1] - width + 1)
        crop = whole[top : top + height, left : left + width]
        if rng.random() < 0.5:
            crop = crop[:, ::-1]
        Image.fromarray(np.ascontiguousarray(crop)).save(folder / f"{number:05d}.jpg", quality=90)


def ours(root: pathlib.Path, policy: str, batch_size: int, workers: int = 0) -> Iterator[dict]:
    """Endless training batches of this project."""
    recipe = bignas.get_config().data
    recipe.update(root=str(root), image_size=SIZE, eval_resize=256, holdout=0)
    recipe.augment.policy = policy
    data = Data.of(recipe)
    loader = Loader(open_dataset(data), "train", batch_size=batch_size, train=True, num_workers=workers)
    return loader.epochs()


def peers(root: pathlib.Path, policy: str, batch_size: int, workers: int = 0, bicubic: bool = False) -> Iterator[list]:
    """Endless training batches of the common torchvision pipeline."""
    data = bignas.get_config().data
    mode = transforms.InterpolationMode.BICUBIC if bicubic else transforms.InterpolationMode.BILINEAR
    steps = [transforms.RandomResizedCrop(SIZE, interpolation=mode), transforms.RandomHorizontalFlip()]
    if policy == "imagenet":
        steps.append(transforms.AutoAugment())
    steps += [transforms.ToTensor(), transforms.Normalize(data.mean, data.std)]
    loader = torch.utils.data.DataLoader(
        ImageFolder(str(root / "train"), transforms.Compose(steps)),
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        multiprocessing_context="spawn" if workers else None,
    )
    return itertools.chain.from_iterable(itertools.repeat(loader))


def write_large_photographs(root: pathlib.Path, count: int, width: int = 3200) -> None:
    """Writes `count` JPEG files of the photographs, `width` pixels wide, as root/{train,val}/{0,1}/*, two in val."""
    for label, whole in enumerate(load_sample_images().images):
        large = Image.fromarray(whole)
        large = large.resize((width, whole.shape[0] * width // whole.shape[1]), Image.Resampling.BICUBIC)
        for split, files in (("train", count // 2), ("val", 1)):
            folder = root / split / str(label)
            folder.mkdir(parents=True)
            for number in range(files):
                large.save(folder / f"{number}.jpg", quality=90)


@contextlib.contextmanager
def one_core():
    """A context that keeps this process on one of its cores, and PyTorch on one thread."""
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, {min(cores)})
    torch.set_num_threads(1)
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(threads)


def seconds_in_turns(sides: dict[str, Iterator], rounds: int) -> dict[str, float]:
    """The median seconds of a batch, by side. The first batch is not counted."""
    seconds = {name: [] for name in sides}
    for _ in range(rounds + 1):
        for name, batches in sides.items():
            start = time.perf_counter()
            next(batches)
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def resident_mb() -> float:
    """This process's resident memory, in MB."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def on_one_core(root: pathlib.Path, policy: str, batch_size: int, rounds: int) -> list[report.Result]:
    """The rates of both sides in turns, and their ratios."""
    sides = {
        "ours": ours(root, policy, batch_size),
        "torchvision": peers(root, policy, batch_size),
        "torchvision bicubic": peers(root, policy, batch_size, bicubic=True),
    }
    with one_core():
        seconds = seconds_in_turns(sides, rounds)
    title = TITLES[policy]
    rates = [report.Result(f"{title}, {name}", batch_size / s, "images/s") for name, s in seconds.items()]
    ratio = seconds["torchvision"] / seconds["ours"]
    same = seconds["torchvision bicubic"] / seconds["ours"]
    return [
        *rates,
        report.Result(f"{title}, ours over torchvision", ratio, target=TARGETS[policy]),
        report.Result(f"{title}, ours over torchvision bicubic", same),
    ]


def from_large_files(root: pathlib.Path, rounds: int, width: int) -> list[report.Result]:
    """Our rate over the peer's on photographs of a camera's size, in batches of 4."""
    write_large_photographs(root, 4, width)
    sides = {"ours": ours(root, "none", 4), "torchvision": peers(root, "none", 4)}
    with one_core():
        seconds = seconds_in_turns(sides, rounds)
    title = f"{TITLES['none']}, files {width} pixels wide"
    return [
        report.Result(f"{title}, ours", 4 / seconds["ours"], "images/s"),
        report.Result(f"{title}, ours over torchvision", seconds["torchvision"] / seconds["ours"]),
    ]


def with_workers(root: pathlib.Path, policy: str, batch_size: int, rounds: int, workers: int) -> list[report.Result]:
    """The rates of both sides from worker processes, one side after the other."""
    results = []
    for name, make in (("ours", ours), ("torchvision", peers)):
        batches = make(root, policy, batch_size, workers)
        for _ in range(3 * workers):  # these batches were read while the workers started
            next(batches)
        start = time.perf_counter()
        for _ in range(rounds):
            next(batches)
        rate = rounds * batch_size / (time.perf_counter() - start)
        results.append(report.Result(f"{TITLES[policy]}, {name}, {workers} workers", rate, "images/s"))
        if hasattr(batches, "close"):
            batches.close()
    return results


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=300, help="files to write and read")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=40, help="batches of each side")
    parser.add_argument("--workers", type=int, default=2, help="worker processes of the last part; 0 leaves it out")
    parser.add_argument("--quick", action="store_true", help="24 images, 3 batches of 8")
    parser.add_argument("--json", metavar="FILE", help="where to write the figures")
    options = parser.parse_args(arguments)
    if options.quick:
        options.images, options.batch_size, options.rounds = 24, 8, 3
    warnings.filterwarnings("ignore", "The image decoding and encoding", DeprecationWarning)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        write_photographs(root, options.images)
        results += on_one_core(root, "none", options.batch_size, options.rounds)
        before = resident_mb()
        results += on_one_core(root, "imagenet", options.batch_size, options.rounds)
        results.append(report.Result("growth of resident memory in the second half", resident_mb() - before, "MB"))
        results += from_large_files(root / "large", options.rounds, 800 if options.quick else 3200)
        for policy in TARGETS if options.workers else ():
            results += with_workers(root, policy, options.batch_size, options.rounds, options.workers)
    report.write("loader", results, options.quick, options.json)


if __name__ == "__main__":
    main()
