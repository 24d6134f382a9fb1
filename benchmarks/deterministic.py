"""What `config.deterministic` costs on this machine, and whether it holds: trainings with and without it, in turns.

    python benchmarks/deterministic.py [--rounds 5] [--json FILE]

All run the same tiny recipe (lab.RECIPE). The first round compiles the programs and is not measured. Every array,
metric and score of the runs with it is held against those of the first one, to the bit; and, because on CPUs nothing
should change, against the runs without it.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from lab import ENVIRONMENT, RECIPE, give_kernels  # noqa: E402
from report import Result, write  # noqa: E402
from same_run import differences  # noqa: E402

WARM = 10  # steps whose speed is not counted
EPOCHS = 20  # of 25 steps


def train(lab: pathlib.Path, name: str, deterministic: bool) -> tuple[float, float]:
    """Trains into `lab / name`. Gives its processor seconds, and the median of its images a second."""
    words = [sys.executable, str(ROOT / "train.py"), "--config", str(lab / "tiny.py"), "--workdir", str(lab / name)]
    words += [f"--config.deterministic={deterministic}", f"--config.epochs={EPOCHS}"]
    words += [f"--config.evaluation.every_epochs={EPOCHS}", "--config.checkpoint.every_steps=1000"]
    environment = ENVIRONMENT | {"XDG_CACHE_HOME": str(lab / "cache")}
    with open(lab / f"{name}.log", "w") as log:
        process = subprocess.Popen(words, cwd=lab, env=environment, stdout=log, stderr=log)
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = code = os.waitstatus_to_exitcode(status)
    if code:
        sys.exit(f"deterministic.py: {' '.join(words)} ended with {code}: {(lab / f'{name}.log').read_text()[-2000:]}")
    rows = [json.loads(line) for line in (lab / name / "metrics.jsonl").read_text().splitlines()]
    speeds = [row["images_per_second"] for row in rows if row["step"] > WARM and "images_per_second" in row]
    return used.ru_utime + used.ru_stime, statistics.median(speeds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="that are measured, one run of each kind in each")
    parser.add_argument("--json", help="file to write the results to")
    options = parser.parse_args()
    seconds, speeds, differing = {True: [], False: []}, {True: [], False: []}, {True: 0, False: 0}
    with tempfile.TemporaryDirectory(prefix="deterministic-") as folder:
        lab = pathlib.Path(folder)
        (lab / "tiny.py").write_text(RECIPE)
        give_kernels(lab, "cache")
        for number in range(options.rounds + 1):
            for kind in (True, False):
                used, speed = train(lab, f"{kind}-{number}", kind)
                found = differences(lab / f"{kind}-{number}", lab / "True-0")
                found = [line for line in found if kind or line != "config.json differs"]  # by the field itself
                print(*found, sep="\n", end="\n" if found else "")
                differing[kind] += len(found)
                if number:
                    seconds[kind].append(used)
                    speeds[kind].append(speed)
    ratios = [a / b for a, b in zip(seconds[True], seconds[False], strict=True)]
    results = [
        Result("processor seconds of a training, with over without", statistics.median(ratios), "x", shown=True),
        Result("the least and the most of a round: least", min(ratios), "x"),
        Result("the least and the most of a round: most", max(ratios), "x"),
        Result("images a second, with over without",
               statistics.median(speeds[True]) / statistics.median(speeds[False]), "x"),
        Result("differences between runs with it", differing[True], "", 0, better="lower"),
        Result("differences between runs with it and without", differing[False], "", better="lower"),
    ]  # fmt: skip
    write("deterministic", results, options.rounds < 5, options.json)
    return 0 if all(result.reached for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
