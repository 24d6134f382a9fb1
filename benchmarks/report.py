"""The results of a benchmark: printed beside their targets, and written as JSON.

    python benchmarks/report.py FOLDER [--results benchmarks/results] [--add]

This merges the files that benchmarks/gpu.sh (or reliability.sh) wrote to FOLDER into one file of results, named by
processor and date. Each run wrote NAME.run, a line of exit status, seconds and command, and NAME.json, by `write`. A
run without NAME.json counts as failed. With --add, other runs of this processor and these versions are kept, with their
commit and date: those in the file, or else in the newest before it, whose place the file then takes.
"""

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import pathlib
import re
import subprocess
import sys
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).resolve().parent.parent
_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "torch", "numpy")
_TIMED_OUT = (124, 137)  # exit status of `timeout`


@dataclasses.dataclass(frozen=True)
class Result:
    """One figure.

    Attributes:
      name: the name of the figure.
      value: the figure.
      unit: 'x' for a ratio, or a unit such as 'ms', 'images/s', 'GB'.
      target: the value to reach; None if there is no target.
      better: 'higher' or 'lower'.
      shown: whether the tables show it although it has no target.
    """

    name: str
    value: float
    unit: str = "x"
    target: float | None = None
    better: str = "higher"
    shown: bool = False

    @property
    def reached(self) -> bool:
        """Whether the target is met; True if there is none."""
        if self.target is None:
            return True
        return self.value >= self.target if self.better == "higher" else self.value <= self.target

    @property
    def bound(self) -> str:
        """The target in words; '' if there is none."""
        if self.target is None:
            return ""
        return f"at {'least' if self.better == 'higher' else 'most'} {self.target:g}"

    def __str__(self) -> str:
        text = f"{self.name}: {self.value:.4g} {self.unit}"
        return text if self.target is None else f"{text} ({self.bound}: {'PASS' if self.reached else 'SHORT'})"


@dataclasses.dataclass(frozen=True)
class Fault:
    """A fault that was tried again and again.

    Attributes:
      fault: what was done, in words, as the README's table shows it.
      tried: how often.
      lost: how often what came after was not as it should be.
    """

    fault: str
    tried: int
    lost: int


def write(
    benchmark: str,
    results: list[Result],
    quick: bool,
    path: str | None,
    silent: bool = False,
    faults: Sequence[Fault] = (),
) -> None:
    """Prints the results, unless `silent`, and writes them, with the faults, as one JSON object if a path is given."""
    for result in () if silent else results:
        print(result)
    if path:
        found = {"benchmark": benchmark, "quick": quick, "results": [dataclasses.asdict(r) for r in results]}
        found |= {"faults": [dataclasses.asdict(fault) for fault in faults]} if faults else {}
        pathlib.Path(path).write_text(json.dumps(found, indent=1) + "\n")


def machine() -> dict[str, object]:
    """The environment of this run: device, number of devices, processor, versions, commit, date."""
    sys.path.insert(0, str(ROOT))
    import jax

    from bignas_jax.search.timing import device_name

    versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processor": device_name(jax.devices()[0]),
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "versions": versions,
    }


def commit() -> str:
    """The commit of this copy, and whether it has changes besides results; unknown in a copy without its history."""
    git = ["git", "-C", str(ROOT)]
    try:
        number = subprocess.check_output([*git, "rev-parse", "HEAD"], text=True, stderr=subprocess.DEVNULL).strip()
        besides = ["--", ".", ":!benchmarks/results"]
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", *besides], check=False).returncode != 0
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{number} with changes" if changed else number


def merge(folder: pathlib.Path) -> list[dict]:
    """The runs that gpu.sh wrote to a folder, in the order in which they ended.

    Returns:
      A dictionary for each run: name, command, status ('done', 'timed out' or 'failed') and seconds. A run that wrote
      its results also has quick and results.
    """
    runs = []
    for file in sorted(folder.glob("*.run"), key=lambda file: (file.stat().st_mtime, file.name)):
        status, seconds, command = file.read_text().strip().split(" ", 2)
        run = {"name": file.stem, "command": command, "status": "done", "seconds": int(seconds)}
        if status != "0":
            run["status"] = "timed out" if int(status) in _TIMED_OUT else "failed"
        found = file.with_suffix(".json")
        if found.exists():  # also if the run failed afterwards
            run |= {name: value for name, value in json.loads(found.read_text()).items() if name != "benchmark"}
        elif run["status"] == "done":
            run["status"] = "failed"
        runs.append(run)
    return runs


def file_name(about: dict[str, object]) -> str:
    """<processor>-<date>.json, in small letters and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", f"{about['processor']}-{about['date']}".lower()).strip("-") + ".json"


def together(old: list[dict], new: list[dict], when: dict[str, str]) -> list[dict]:
    """The runs of two days: the later one's, but no failure takes the place of a run that gave figures.

    Args:
      old: the runs of a file.
      new: the runs of today.
      when: commit and date of those old ones that have none of their own.
    """

    def gave(run: dict) -> bool:
        return bool(run.get("results") or run.get("faults"))

    names = {run["name"]: gave(run) for run in new}
    kept = [when | run for run in old if run["name"] not in names or (gave(run) and not names[run["name"]])]
    stay = {run["name"] for run in kept}
    return kept + [run for run in new if run["name"] not in stay]


def newest_before(path: pathlib.Path, about: dict[str, object]) -> pathlib.Path | None:
    """The file at path, or else the newest of the same processor and versions up to its day; None if there is none."""
    if path.exists():
        return path
    files = {file: json.loads(file.read_text()) for file in path.parent.glob("*.json")}
    alike = [file for file, old in files.items()
             if (old.get("processor"), old.get("versions")) == (about["processor"], about["versions"])
             and old["date"] <= about["date"]]  # fmt: skip
    return max(alike, key=lambda file: (files[file]["date"], file.name), default=None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path, help="what benchmarks/gpu.sh left")
    parser.add_argument("--results", type=pathlib.Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--add", action="store_true", help="keep other runs of this device and these versions")
    args = parser.parse_args()
    runs = merge(args.folder)
    if not runs:
        parser.error(f"{args.folder}: found no *.run, expected what benchmarks/gpu.sh leaves there")
    about = machine()
    path = args.results / file_name(about)
    path.parent.mkdir(parents=True, exist_ok=True)
    before = newest_before(path, about) if args.add else None
    if before is not None:
        old = json.loads(before.read_text())
        runs = together(old["runs"], runs, {field: old[field] for field in ("commit", "date")})
    path.write_text(json.dumps(about | {"runs": runs}, indent=1) + "\n")
    if before is not None and before != path:
        before.unlink()
    for run in runs:
        short = [row["name"] for row in run.get("results", ()) if not Result(**row).reached]
        note = f"; short of the target: {', '.join(short)}" if short else ""
        print(f"{run['name']}: {run['status']} in {run['seconds']} s{note}")
    print(path)


if __name__ == "__main__":
    main()
