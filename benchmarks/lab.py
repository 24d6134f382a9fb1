"""Runs of the scripts that a reliability test starts, watches and kills, in a folder of its own."""

import collections
import enum
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from watch import last_record

from bignas_jax.kernels.native import toolchain

ROOT = pathlib.Path(__file__).resolve().parent.parent
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
    config.data.holdout, config.batch_size, config.epochs = 200, 48, 2
    config.model.dropout, config.sandwich.num_random, config.optimizer.ema_decay = 0.2, 1, 0.9
    config.calibration.num_images, config.calibration.batch_size = 96, 48
    config.checkpoint.every_steps, config.checkpoint.keep, config.log.every_steps = 5, 2, 1
    config.evaluation.every_epochs = 0.5
    config.search.num_evaluations = 24
    return config
"""
# LLVM at level 0 halves the time of a compile; the programs run for milliseconds, whatever their code.
ENVIRONMENT = {"XLA_FLAGS": "--xla_backend_optimization_level=0"} | os.environ
ENVIRONMENT |= {"JAX_ENABLE_COMPILATION_CACHE": "true"}
PATIENCE = 3600.0  # seconds that one process may take: more is a hang, also where other work takes the processors
GLANCE = 0.003  # seconds between looks at a process


class Place(enum.StrEnum):
    """Where a process is."""

    COMPILE = "in the first compile"
    SAVE = "in a save"
    EVALUATION = "in an evaluation"
    RESULT = "in the final scoring"
    ELSEWHERE = "elsewhere"


class Run:
    """One kind of run: its command, its folder, and where a process of it is.

    Args:
      what: 'train', 'child' or 'search'.
      lab: the folder of all runs.
      name: of this run's folder.
    """

    def __init__(self, what: str, lab: pathlib.Path, name: str):
        self.what, self.lab, self.workdir = what, lab, lab / name
        self.progress = self.workdir / ("search/evaluations.jsonl" if what == "search" else "metrics.jsonl")
        # Known once a run has ended: the steps that an evaluation follows, and the lines of a search before its scores.
        self.evaluates: set[int] = set()
        self.searched = sys.maxsize
        self.programs = 0  # that it keeps
        # Of an undisturbed run: the seconds in all and at each place, and how often it came there.
        self.seconds, self.spent, self.visits = 0.0, collections.Counter(), collections.Counter()

    def beside(self) -> "Run":
        """The same in another folder, with what is known of this one."""
        other = Run(self.what, self.lab, f"{self.what}-killed")
        other.evaluates, other.searched, other.seconds = self.evaluates, self.searched, self.seconds
        other.spent, other.visits, other.programs = self.spent, self.visits, self.programs
        return other

    def begin(self) -> None:
        """Makes what has to be there before the first command."""
        shutil.rmtree(self.workdir, ignore_errors=True)
        if self.what == "search":
            shutil.copytree(self.lab / "train", self.workdir)

    def start(self, cache: str) -> "Process":
        script = "search.py" if self.what == "search" else "train.py"
        words = [sys.executable, str(ROOT / script), "--config", str(self.lab / "tiny.py")]
        words += ["--workdir", str(self.workdir)]
        if self.what == "child":
            words += ["--config.arch=min", f"--config.init_from={self.lab / 'train'}"]
        return Process(words, self.lab, cache)

    def place(self, process: "Process") -> Place:
        """Where a process is, by what lies in its folders."""
        if _written(self.progress) < process.since:
            return Place.COMPILE if process.keeps_programs() else Place.ELSEWHERE
        if self.what == "search":
            scored = self.progress.read_bytes().count(b"\n") >= self.searched
            return Place.RESULT if scored else Place.EVALUATION
        last = last_record(self.progress)
        if any((self.workdir / "checkpoints").glob("*tmp*")):  # orbax writes beside the step's place
            return Place.SAVE
        scored = any("_top1/" in name for name in last)
        if last.get("step") in self.evaluates and not scored:
            return Place.EVALUATION
        return Place.RESULT if scored and last["step"] == max(self.evaluates, default=0) else Place.ELSEWHERE

    def undisturbed(self, quick: bool = False) -> None:
        """Runs to the end twice, the first time with nothing kept, and measures how long it is at each place.

        Args:
          quick: leave out the second time.
        """
        for _ in range(1 if quick else 2):
            self._whole()

    def _whole(self) -> None:
        self.begin()
        self.spent.clear(), self.visits.clear()
        process = self.start("cache")
        begun = now = time.monotonic()
        last = None
        while process.runs() and now - begun < PATIENCE:
            time.sleep(GLANCE)
            place, before, now = self.place(process), now, time.monotonic()
            self.spent[place] += now - before
            self.visits[place] += place != last
            last = place
        if code := process.end():
            sys.exit(f"an undisturbed {self.what} ended with {code}: {process.said()}")
        self.seconds, self.programs = now - begun, max(self.programs, process.kept())
        rows = [json.loads(line) for line in self.progress.read_text().splitlines()]
        if self.what == "search":
            self.searched = [row.get("part") for row in rows].index("val")
        else:
            self.evaluates = {row["step"] for row in rows if any("_top1/" in name for name in row)}


class Process:
    """A process of a run, whose programs are kept in a folder of their own.

    Args:
      words: the command.
      lab: where it runs.
      cache: the folder of kept programs, in `lab`.
    """

    def __init__(self, words: list[str], lab: pathlib.Path, cache: str):
        self._programs = lab / cache / "bignas_jax" / "programs"
        self._log = tempfile.TemporaryFile(dir=lab)
        self.since = time.time()
        environment = ENVIRONMENT | {"XDG_CACHE_HOME": str(lab / cache)}
        self._popen = subprocess.Popen(words, cwd=lab, env=environment, stdout=subprocess.DEVNULL, stderr=self._log)

    def runs(self) -> bool:
        return self._popen.poll() is None

    def kept(self) -> int:
        """How many compiled programs there are."""
        return len(list(self._programs.glob("*.program")))

    def keeps_programs(self) -> bool:
        """Whether it has compiled and kept a program: it compiles until its first step."""
        return _written(self._programs) > self.since

    def halt(self) -> bool:
        """Stops it where it is; False if it had ended."""
        self._popen.send_signal(signal.SIGSTOP)
        state = pathlib.Path(f"/proc/{self._popen.pid}/stat")
        while self.runs():
            if state.read_text().rpartition(")")[2].split()[0] == "T":
                return True
            time.sleep(0.001)
        return False

    def kill(self) -> None:
        self._popen.kill()
        self._popen.wait()

    def end(self) -> int:
        """Waits for its end, and gives its exit code; a process that hangs is killed."""
        try:
            return self._popen.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            return -signal.SIGKILL

    def said(self) -> str:
        """The end of what it wrote to stderr."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")[-2000:]


def _written(path: pathlib.Path) -> float:
    """When a file was last written, or something was added to a folder; 0 if it is not there."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def give_kernels(lab: pathlib.Path, cache: str) -> None:
    """Puts the native kernels into a cache, if the user's own has them."""
    if toolchain.cache_folder().is_dir():
        shutil.copytree(toolchain.cache_folder(), lab / cache / "bignas_jax" / "native", dirs_exist_ok=True)
