"""Candidates a minute of a search, beside the way PyTorch-BigNAS evaluates them.

    python benchmarks/search.py [--workdir exp/digits] [--candidates 200] [--peer 10] [--quick]

The peer builds each candidate as a PyTorch module with its slice of the weights. Each time, it loads the calibration
and the held-out images through a new data loader (PIL, ToTensor, Normalize; 2 forked workers). Our side keeps the
images on the device. All candidates of a resolution run in the same executable: on all held-out images ("equal
images"), progressively, as search.py does, and progressively with config.search.preview. All ways take the same run's
weights and images, in turns, in one process. The candidates are drawn at random, with at most half of the biggest
network's multiply-adds.
"""

import argparse
import copy
import dataclasses
import json
import math
import pathlib
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from bignas_jax.programs import memory  # noqa: E402

memory.keep_freed_memory()

import jax  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from PIL import Image  # noqa: E402
from reference_torch import Child, load_slice  # noqa: E402
from torchvision import transforms  # noqa: E402

from bignas_jax.config.files import load_run_options  # noqa: E402
from bignas_jax.interop.imports.bignas_names import _parameters  # noqa: E402
from bignas_jax.programs.kept import use_compilation_cache  # noqa: E402
from bignas_jax.search import held_out as images  # noqa: E402
from bignas_jax.search import run  # noqa: E402
from bignas_jax.search.held_out import HeldOut  # noqa: E402
from bignas_jax.search.journal import Journal  # noqa: E402
from bignas_jax.search.problem import Budget, Problem  # noqa: E402
from bignas_jax.search.race import Race  # noqa: E402
from bignas_jax.search.strategies.strategy import Proposal  # noqa: E402

WORKERS = 2


def state_dict_of(session, params) -> dict[str, np.ndarray]:
    """The supernet's weights with PyTorch's names.

    Each conversion from PyTorch is a permutation of entries. It is found with numbered entries, and inverted.
    """
    found = {}
    for parameter in _parameters(session.space, session.options.model.num_classes):
        value = params
        for part in parameter.path:
            value = value[part]
        numbers = parameter.convert(np.arange(math.prod(parameter.shape)).reshape(parameter.shape))
        flat = np.empty(numbers.size, np.float32)
        flat[numbers.ravel()] = np.asarray(value).ravel()
        found[parameter.name] = flat.reshape(parameter.shape)
    return found


class Files(torch.utils.data.Dataset):
    """Images of a split as torchvision's ImageFolder gives them."""

    def __init__(self, session, split: str, limit: int = 0):
        batch_size = limit or session.options.evaluation.batch_size
        loader = session.loader(split, batch_size, limit=limit)
        self.source, _ = session.dataset.select("train" if split == "calibration" else split)
        self.indices = np.asarray(loader.order(0))
        data = session.options.data
        self.transform = transforms.Compose([
            transforms.Resize(data.eval_resize), transforms.CenterCrop(data.image_size), transforms.ToTensor(),
            transforms.Normalize(data.mean, data.std),
        ])

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number: int):
        i = int(self.indices[number])
        in_memory = not hasattr(self.source, "root")
        image = Image.fromarray(self.source.load(i)) if in_memory else Image.open(self.source.name(i)).convert("RGB")
        return self.transform(image), int(self.source.labels[i])


class Peer:
    """Evaluates a candidate in PyTorch, from the loader."""

    def __init__(self, session, params, sizes: images.Sizes):
        self.session, self.sizes = session, sizes
        self.state = state_dict_of(session, params)
        self.calibration = Files(session, "calibration", sizes.calibration)
        self.held_out = Files(session, "holdout")

    def top1(self, arch) -> float:
        """Top-1 of a candidate on the held-out images, 0..1."""
        child = Child(self.session.space, arch, self.session.options.model.num_classes)
        missing = {n: a.numpy() for n, a in child.state_dict().items() if "running" in n}
        child = load_slice(child, missing | self.state).to(memory_format=torch.channels_last)
        with torch.inference_mode():
            child.statistics("calibrate")
            for image, _ in self._batches(self.calibration, self.sizes.calibration_batch):
                child(self._resized(image, arch))
            child.statistics("stored")
            right = 0
            for image, label in self._batches(self.held_out, self.session.options.evaluation.batch_size):
                right += int((child(self._resized(image, arch)).argmax(1) == label).sum())
        return right / len(self.held_out)

    def _resized(self, image, arch):
        side = (arch.resolution, arch.resolution)
        if tuple(image.shape[2:]) != side:
            image = F.interpolate(image, side, mode="bicubic", align_corners=False)
        return image.to(memory_format=torch.channels_last)

    def _batches(self, files: Files, size: int):
        return torch.utils.data.DataLoader(files, batch_size=size, num_workers=WORKERS)


def make_race(folder: pathlib.Path, name: str, problem, held_out, confidence: float) -> Race:
    """A race with a fresh journal in `folder`."""
    journal = Journal(folder / f"{name}.jsonl", {})
    return Race(problem, held_out, journal, confidence, front=False)


def timed(work) -> float:
    """The seconds that `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", default="exp/digits", help="a trained run")
    parser.add_argument("--candidates", type=int, default=200)
    parser.add_argument("--peer", type=int, default=10, help="candidates that the peer evaluates")
    parser.add_argument("--equal", type=int, default=40, help="candidates that are scored on all images")
    parser.add_argument("--quick", action="store_true", help="12 candidates, 2 of them by the peer")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.candidates, arguments.peer, arguments.equal = 12, 2, 4
    use_compilation_cache()
    workdir = pathlib.Path(arguments.workdir)
    options = load_run_options(workdir / "config.json")
    options = dataclasses.replace(options, search=dataclasses.replace(options.search, preview=True))
    session, weights, _ = run.open_run(options, workdir, "newest")
    sizes = images.plan(session)
    costs = Problem(session.space, options.model.num_classes, ())
    half = Budget("half", macs=0.5 * costs.costs(session.space.biggest)["macs"])
    problem = Problem(session.space, options.model.num_classes, [half])
    rng = np.random.default_rng(0)
    archs: dict = {}
    for _ in range(100 * arguments.candidates):
        archs[problem.sample(half, rng)] = None
        if len(archs) == arguments.candidates:
            break
    archs = list(archs)
    peer = Peer(session, jax.tree.map(np.asarray, weights), sizes)
    seconds = dict.fromkeys(("peer", "equal", "progressive", "preview", "placing images"), 0.0)
    previewed = None

    def place():
        nonlocal previewed
        previewed = HeldOut(session, weights, sizes, resident=True)

    seconds["placing images"] = timed(place)
    previewed.compile(session.space.resolution)
    held_out = copy.copy(previewed)
    held_out.sizes = dataclasses.replace(previewed.sizes, preview=0)
    peer_top1 = {}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        equal = make_race(folder, "equal", problem, held_out, math.inf)
        progressive = make_race(folder, "progressive", problem, held_out, options.search.confidence)
        preview = make_race(folder, "preview", problem, previewed, options.search.confidence)
        turns = (equal, "equal", arguments.equal), (progressive, "progressive", None), (preview, "preview", None)
        for chunk in range(arguments.peer):  # in turns, so that other work on the machine affects all
            arch = archs[chunk]
            seconds["peer"] += timed(lambda arch=arch: peer_top1.update({arch: peer.top1(arch)}))
            for race, name, number in turns:
                part = archs[:number][chunk :: arguments.peer]
                proposals = [Proposal(a, "benchmark") for a in part]
                seconds[name] += timed(lambda race=race, proposals=proposals: race.score(proposals))
        # The winners are compared with the winner among all candidates on all images.
        whole = make_race(folder, "equal", problem, held_out, math.inf)
        whole.score([Proposal(a, "benchmark") for a in archs])
    rates = {
        "peer": 60 * len(peer_top1) / seconds["peer"],
        "equal": 60 * len(equal.evaluations) / seconds["equal"],
        "progressive": 60 * len(progressive.evaluations) / seconds["progressive"],
        "preview": 60 * len(preview.evaluations) / seconds["preview"],
    }
    full = {arch: e.top1 for arch, e in whole.evaluations.items()}
    difference = max(abs(full[arch] - top1) for arch, top1 in peer_top1.items())
    winner, quick, best = (race.best(half).arch for race in (progressive, preview, whole))
    scored, looked = (sum(e.images for e in race.evaluations.values()) / len(archs) for race in (progressive, preview))
    device = session.mesh.devices.flat[0].device_kind
    print(f"{workdir}, {device} x {session.mesh.size}, {torch.get_num_threads()} PyTorch threads, "
          f"{sizes.calibration} calibration and {sizes.held_out} held-out images; placing them took "
          f"{seconds['placing images']:.1f} s, once")
    print(f"peer, {len(peer_top1)} candidates:              {rates['peer']:9.1f} a minute")
    print(f"equal images, {len(equal.evaluations)} candidates:      {rates['equal']:9.1f} a minute, "
          f"{rates['equal'] / rates['peer']:.2f} times the peer")
    print(f"progressive, {len(archs)} candidates:      {rates['progressive']:9.1f} a minute, "
          f"{rates['progressive'] / rates['peer']:.2f} times the peer; {scored:.0f} images a candidate")
    changes = [100 * e.change for e in preview.evaluations.values() if e.change is not None]
    changed = f"{len(changes)} went on, which changed their top-1 by {np.mean(changes):.2f}% +- {np.std(changes):.2f}%"
    print(f"with a preview, {len(archs)} candidates:   {rates['preview']:9.1f} a minute, "
          f"{rates['preview'] / rates['peer']:.2f} times the peer; {looked:.0f} images a candidate, "
          f"{changed if changes else 'none of them as a preview: the first part is as small'}")
    print(f"held-out top-1 of the progressive winner {100 * full[winner]:.2f}%, of that with a preview "
          f"{100 * full[quick]:.2f}%, of the best {100 * full[best]:.2f}%; largest difference to the peer's top-1: "
          f"{100 * difference:.2f}%")
    print(json.dumps({"ratio": rates["progressive"] / rates["peer"], "ratio_equal": rates["equal"] / rates["peer"],
                      "ratio_preview": rates["preview"] / rates["peer"]}))


if __name__ == "__main__":
    main()
