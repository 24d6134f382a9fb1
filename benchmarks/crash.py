"""Kills a training, a child's training and a search again and again, and holds what is left against undisturbed ones.

    python benchmarks/crash.py [--kills 50] [--what train,child,search] [--seed 0] [--workdir FOLDER] [--json FILE]

Each is killed with SIGKILL at random moments and started again with the same command, until it has been killed as
often as asked. One that ends before that is begun anew. A third of the kills wait for a checkpoint that is being saved,
a third for an evaluation, the others for a random time. The first kill comes while programs compile, with nothing kept
from earlier runs. Afterwards every array of the last and the best checkpoint, every metric, the final evaluation and
the search's result must be those of the undisturbed run, to the bit, and the folder must hold nothing but whole steps.
Exit code 1 where anything differs.
"""

import argparse
import json
import logging
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import numpy as np  # noqa: E402
from report import Result, write  # noqa: E402

# Two stages at one resolution on digits: seconds a run once its programs are compiled.
RECIPE = """
from ml_collections import ConfigDict
from configs import digits

def get_config():
    config = digits.get_config()
    stage = dict(depth=(1, 2), kernel_size=(3,), expand_ratio=(2,), se=False)
    config.space = ConfigDict(dict(
        resolution=(8,), stem_width=(8,), stem_stride=1, head_width=(16,), v3_head=False, activation="swish",
        stages=dict(mb1=dict(stage, width=(8, 16), stride=2), mb2=dict(stage, width=(16,), stride=2, se=True)),
    ))
    config.data.image_size = config.data.eval_resize = 8
    config.data.holdout, config.batch_size, config.epochs = 200, 48, 6
    config.model.dropout, config.sandwich.num_random, config.optimizer.ema_decay = 0.2, 1, 0.9
    config.calibration.num_images, config.calibration.batch_size = 96, 48
    config.checkpoint.every_steps, config.checkpoint.keep, config.log.every_steps = 5, 2, 1
    config.evaluation.every_epochs = 0.5
    config.search.num_evaluations = 8
    return config
"""
NOISE = ("images_per_second", "seconds", "images_per_minute")  # what no two runs have alike
PATIENCE = 120.0  # seconds that one process may take


class Lab:
    """The commands, and a folder for all that they write."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.recipe = folder, folder / "tiny.py"
        folder.mkdir(parents=True, exist_ok=True)
        self.recipe.write_text(RECIPE)

    def command(self, what: str, workdir: pathlib.Path) -> list[str]:
        script = "search.py" if what == "search" else "train.py"
        words = [sys.executable, str(ROOT / script), "--config", str(self.recipe), "--workdir", str(workdir)]
        if what == "child":
            words += ["--config.arch=min", f"--config.init_from={self.folder / 'train'}"]
        return words

    def begin(self, what: str, workdir: pathlib.Path) -> None:
        """What has to be there before the command."""
        shutil.rmtree(workdir, ignore_errors=True)
        if what == "search":
            shutil.copytree(self.folder / "train", workdir)

    def start(self, what: str, workdir: pathlib.Path, cache: str = "cache") -> subprocess.Popen:
        kept = {"XDG_CACHE_HOME": str(self.folder / cache)}
        return subprocess.Popen(
            self.command(what, workdir), cwd=self.folder, env=os.environ | kept,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, what: str, workdir: pathlib.Path) -> float:
        """One undisturbed run, and its seconds."""
        self.begin(what, workdir)
        start = time.monotonic()
        process = self.start(what, workdir)
        _, err = process.communicate(timeout=10 * PATIENCE)
        if process.returncode:
            sys.exit(f"crash.py: {what} ended with {process.returncode}: {err[-2000:]}")
        return time.monotonic() - start


def moments(rng: random.Random, workdir: pathlib.Path, seconds: float) -> Iterator[Callable[[], bool]]:
    """Conditions to kill at, one after the other: a function that says whether it is time."""
    while True:
        yield _after(rng.uniform(0.2, 1.05 * seconds))
        yield lambda: any((workdir / "checkpoints").glob("*tmp*"))  # orbax writes beside the step's place
        yield _evaluating(workdir, rng.randrange(1, 12))


def _after(delay: float) -> Callable[[], bool]:
    until = time.monotonic() + delay
    return lambda: time.monotonic() > until


def _evaluating(workdir: pathlib.Path, evaluation: int) -> Callable[[], bool]:
    """Whether a step has been logged whose evaluation is not there yet."""

    def now() -> bool:
        path = workdir / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        steps = [json.loads(line)["step"] for line in lines if line.endswith("}")]
        return bool(steps) and steps[-1] >= 8 * evaluation and steps[-1] % 8 == 0

    return now


def batter(lab: Lab, what: str, kills: int, seconds: float, rng: random.Random) -> tuple[int, list[str]]:
    """Kills runs until it has killed `kills` times.

    Returns:
      The runs that came to their end, and what differed in them.
    """
    workdir, killed, ended, found = lab.folder / f"{what}-killed", 0, 0, []
    lab.begin(what, workdir)
    conditions = moments(rng, workdir, seconds)
    while True:
        cold = killed == 0
        process = lab.start(what, workdir, f"cold-{what}" if cold else "cache")
        time_is_up = _after(rng.uniform(2.0, seconds)) if cold else next(conditions)
        if killed == kills:
            time_is_up = lambda: False  # noqa: E731
        deadline = time.monotonic() + PATIENCE
        while process.poll() is None and not time_is_up() and time.monotonic() < deadline:
            time.sleep(0.002)
        if process.poll() is None and killed < kills:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            killed += 1
            continue
        _, err = process.communicate(timeout=PATIENCE)
        if process.returncode:
            return ended, [*found, f"{what}: exit code {process.returncode}: {err[-500:]}"]
        ended += 1
        found += [f"{what}, run {ended}: {line}" for line in differences(what, workdir, lab.folder / what)]
        print(f"{what}: killed {killed} times, run {ended} compared", flush=True)
        if killed == kills:
            return ended, found
        lab.begin(what, workdir)


def differences(what: str, found: pathlib.Path, expected: pathlib.Path) -> list[str]:
    """What the two folders do not have alike, a line each."""
    lines = []
    for name in ("metrics.jsonl", "evaluation_val.json", "search/result.json", "search/evaluations.jsonl"):
        if (expected / name).exists() and _values(found / name) != _values(expected / name):
            lines.append(f"{name} differs")
    steps = [sorted(path.name for path in (folder / "checkpoints").iterdir()) for folder in (found, expected)]
    if steps[0] != steps[1]:
        lines.append(f"checkpoints: found {steps[0]}, expected {steps[1]}")
    for step in set(steps[0]) & set(steps[1]):
        ours, theirs = (arrays(folder / "checkpoints" / step) for folder in (found, expected))
        lines += [f"step {step}: {name}" for name in theirs if name not in ours or ours[name] != theirs[name]]
    left = [path.name for path in found.rglob("*tmp*")] + [path.name for path in found.glob("damaged")]
    return lines + [f"left behind: {name}" for name in left]


def _values(path: pathlib.Path) -> object:
    """What a file of JSON, or of lines of it, holds, but for what no two runs have alike."""
    if not path.exists():
        return None
    text = path.read_text()
    return _quiet([json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text))


def _quiet(value: object) -> object:
    if isinstance(value, dict):
        return {key: _quiet(v) for key, v in value.items() if key not in (*NOISE, "workdir", "run")}
    return [_quiet(v) for v in value] if isinstance(value, list) else value


def arrays(step: pathlib.Path) -> dict[str, bytes]:
    """Every array of a checkpoint, read by orbax alone, as bytes."""
    import jax
    import orbax.checkpoint as ocp

    logging.getLogger("absl").setLevel(logging.ERROR)
    found = {}
    for item in ("params", "ema", "training"):
        if (step / item).is_dir():
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
                form = reader.metadata(step / item).item_metadata.tree
                as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), form)
                tree = reader.restore(step / item, ocp.args.PyTreeRestore(restore_args=as_numpy))
            leaves = jax.tree_util.tree_leaves_with_path(tree)
            found |= {f"{item}{jax.tree_util.keystr(path)}": np.asarray(leaf).tobytes() for path, leaf in leaves}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="of each kind")
    parser.add_argument("--what", default="train,child,search", help="train, child and search, by commas")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--workdir", help="where to run; a temporary folder by default")
    parser.add_argument("--json", help="file to write the results to")
    arguments = parser.parse_args()
    folder = pathlib.Path(arguments.workdir or tempfile.mkdtemp(prefix="crash-")).absolute()
    lab, rng, lost, results = Lab(folder), random.Random(arguments.seed), [], []
    lab.run("train", lab.folder / "train")  # the others start from it
    for what in arguments.what.split(","):
        if what != "train":
            lab.run(what, lab.folder / what)
        seconds = lab.run(what, lab.folder / what)  # with kept programs
        ended, found = batter(lab, what, arguments.kills, seconds, rng)
        lost += found
        print(*found, sep="\n", end="\n" if found else "")
        results += [
            Result(f"crash: kills of {what}", arguments.kills, "kills"),
            Result(f"crash: runs of {what} that ended", ended, "runs"),
            Result(f"crash: differences of {what}", len(found), "", 0, better="lower"),
        ]
    write("crash", results, False, arguments.json)
    if not arguments.workdir:
        shutil.rmtree(folder)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
