"""Kills a training, a child's training and a search again and again, and holds what is left against undisturbed ones.

    python benchmarks/crash.py [--kills 50] [--what train,child,search] [--seed 0] [--workdir FOLDER] [--json FILE]

Each is killed with SIGKILL at random moments and started again with the same command, until it has been killed as
often as asked. One that ends before that is begun anew. Some kills wait until a checkpoint is being saved, some for an
evaluation, some for the final scoring, and some come at any time. Every tenth, and the first, comes while programs
compile, with nothing kept from earlier runs. A process is halted before it is killed, so that the place that is counted
is the one where it was.

Afterwards every array of every checkpoint that is kept, the last and the best among them, every metric, the
evaluations, the search's journal, winners and report must be those of the undisturbed run, to the bit, and the folder
must hold nothing else. What differs is printed as it is found, and the exit code is 1 then.
"""

import argparse
import collections
import dataclasses
import pathlib
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from lab import GLANCE, PATIENCE, RECIPE, Place, Process, Run, give_kernels  # noqa: E402
from report import Fault, Result, write  # noqa: E402
from same_run import differences  # noqa: E402

COLD_EVERY = 10  # kills
TARGETS = {
    "train": (Place.SAVE, Place.EVALUATION, Place.ELSEWHERE, Place.RESULT),
    "child": (Place.SAVE, Place.EVALUATION, Place.ELSEWHERE, Place.RESULT),
    "search": (Place.EVALUATION, Place.RESULT, Place.ELSEWHERE),
}


def moment(run: Run, target: Place, rng: random.Random) -> Callable[[Process], bool]:
    """A function that says of a process whether it is time to kill it."""
    if target == Place.ELSEWHERE:
        until = time.monotonic() + rng.uniform(0.2, 0.95 * run.seconds)
        return lambda process: time.monotonic() > until
    if target == Place.COMPILE:
        kept = rng.randrange(1, max(run.programs, 2))
        return lambda process: process.kept() >= kept
    visits = max(run.visits[target], 1)
    passing, delay = rng.randrange(max(visits // 3, 1)), rng.uniform(0, 0.8 * run.spent[target] / visits)
    since = None

    def now(process: Process) -> bool:
        nonlocal passing, since
        if run.place(process) != target:
            passing, since = passing - (since is not None), None
            return False
        since = since or time.monotonic()
        return passing <= 0 and time.monotonic() - since >= delay

    return now


@dataclasses.dataclass
class Toll:
    """What came of the kills of runs that ended and were compared.

    Attributes:
      killed: how many kills there were at each place.
      lost: kills of runs that did not end as the undisturbed one.
      ended: runs.
      whole: runs that ended as the undisturbed one.
      differences: in the others.
    """

    killed: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    lost: int = 0
    ended: int = 0
    whole: int = 0
    differences: int = 0

    def add(self, killed: collections.Counter, differences: int) -> None:
        """Counts a run that ended."""
        self.killed += killed
        self.lost += killed.total() if differences else 0
        self.ended, self.whole = self.ended + 1, self.whole + (not differences)
        self.differences += differences

    def fault(self, what: str) -> Fault:
        """The row of the README's table."""
        names = {"train": "a training", "child": "a child's training", "search": "a search"}
        places = ", ".join(f"{n} {place}" for place in Place if (n := self.killed[place]) and place != Place.ELSEWHERE)
        told = f", {places}," if places else ""
        return Fault(
            f"SIGKILL at a random moment of {names[what]}{told} and the same command again: {self.whole} of "
            f"{self.ended} runs ended with the bits of the undisturbed one",
            self.killed.total(),
            self.lost,
        )

    def results(self, what: str) -> list[Result]:
        """The figures of `what`."""
        total = self.killed.total()
        return [
            Result(f"{what}: kills survived", total - self.lost, f"of {total}", total),
            Result(f"{what}: kills lost", self.lost, "", 0, better="lower"),
            *(Result(f"{what}: kills {place}", self.killed[place], "") for place in Place),
            Result(f"{what}: runs that ended and were compared", self.ended, ""),
            Result(f"{what}: differences", self.differences, "", 0, better="lower"),
        ]


def batter(run: Run, whole: Run, kills: int, rng: random.Random) -> Iterator[Toll]:
    """Kills runs until it has killed `kills` times, and gives the toll so far after each run that ended.

    What differs from the whole run is printed as it is found.
    """
    toll, number, killed, missed, cache = Toll(), 0, collections.Counter(), False, "cache"
    run.begin()
    while number < kills or killed:
        turn = number % COLD_EVERY
        target = Place.COMPILE if turn == 0 else TARGETS[run.what][number % len(TARGETS[run.what])]
        if turn == 0 and not missed:
            cache = _cold(run, number)
        elif turn > 1:  # the start after the kill in a compile meets what that one left
            cache = "cache"
        process, begun = run.start(cache), time.monotonic()
        time_is_up = moment(run, Place.ELSEWHERE if missed else target, rng) if number < kills else lambda _: False
        deadline = begun + PATIENCE
        while process.runs() and time.monotonic() < deadline and not time_is_up(process):
            time.sleep(GLANCE)
        hung = time.monotonic() >= deadline
        if number < kills and not hung and process.halt():
            killed[run.place(process)] += 1
            process.kill()
            number, missed = number + 1, False
            continue
        if hung:
            process.kill()
        code, run.seconds = process.end(), time.monotonic() - begun  # it may be faster than before
        if code:
            wrong = [f"no end after {PATIENCE:.0f} s" if hung else f"exit code {code}: {process.said()}"]
        else:
            wrong = differences(run.workdir, whole.workdir)
        for line in wrong:
            print(f"{run.what}: {line}", flush=True)
        toll.add(killed, len(wrong))
        print(f"{run.what}: run {toll.ended} compared after {killed.total()} kills, {number} in all", flush=True)
        yield toll
        missed, killed = True, collections.Counter()
        run.begin()


def _cold(run: Run, number: int) -> str:
    """A folder without kept programs. Only the first start of a long test builds the native kernels, too."""
    cache = f"cold-{run.what}-{number}"
    if number:
        give_kernels(run.lab, cache)
    return cache


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="of each kind")
    parser.add_argument("--what", default="train,child,search", help="train, child and search, by commas")
    parser.add_argument("--quick", action="store_true", help="2 kills of train, one of them in the first compile")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--workdir", help="where to run; a temporary folder by default")
    parser.add_argument("--json", help="file to write the results to")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.kills, arguments.what = 2, "train"
    kinds = arguments.what.split(",")
    if unknown := [what for what in kinds if what not in TARGETS]:
        parser.error(f"--what: found {unknown[0]}, expected some of {', '.join(TARGETS)}, by commas")
    lab = pathlib.Path(arguments.workdir or tempfile.mkdtemp(prefix="crash-")).absolute()
    lab.mkdir(parents=True, exist_ok=True)
    (lab / "tiny.py").write_text(RECIPE)
    for cache in ("cache", *(["cold-train-0"] if arguments.quick else [])):
        give_kernels(lab, cache)
    results, faults = [], []
    for what in dict.fromkeys(["train", *kinds]):  # the others start from the undisturbed training
        whole = Run(what, lab, what)
        whole.undisturbed(arguments.quick)
        done = results, faults
        rng = random.Random(f"{arguments.seed} {what}")
        for toll in batter(whole.beside(), whole, arguments.kills, rng) if what in kinds else ():
            results, faults = done[0] + toll.results(what), [*done[1], toll.fault(what)]
            write("crash", results, arguments.quick, arguments.json, True, faults)  # a long run may be cut off
    write("crash", results, arguments.quick, arguments.json, faults=faults)
    if not arguments.workdir:
        shutil.rmtree(lab)
    return 0 if all(result.reached for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
