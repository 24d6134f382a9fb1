"""Makes the README's tables from the files in benchmarks/results/, the newest of each device.

The table of speed comes from the files themselves, that of reliability from those in the folder reliability/.

    python benchmarks/table.py            # writes both into README.md, each between its two markers
    python benchmarks/table.py --check    # fails if README.md says something else
"""

import argparse
import json
import pathlib
import sys

from report import Fault, Result

ROOT = pathlib.Path(__file__).resolve().parent.parent
PERFORMANCE, RELIABILITY = "performance", "reliability"


def newest(folder: pathlib.Path) -> list[dict]:
    """The files' contents, the newest of each device, by device."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        about = json.loads(path.read_text())
        if about["device"] not in found or about["date"] >= found[about["device"]]["date"]:
            found[about["device"]] = about
    return [found[device] for device in sorted(found)]


def rows(about: dict) -> list[str]:
    """A line for each figure that has a target or is shown. A run without figures gets a line with its status."""
    lines = []
    for run in about["runs"]:
        command = f"`{run['command']}`"
        results = [Result(**row) for row in run.get("results", ())]
        for result in (r for r in results if r.target is not None or r.shown):
            value = f"{result.value:.3g} {result.unit}".strip()
            met = value if result.reached else f"{value} (short)"
            lines.append(f"| {result.name} | {met} | {result.bound} | {command} |")
            command = ""
        if not results:
            lines.append(f"| {run['name']} | {run['status']} | | {command} |")
    return lines


def commit(about: dict) -> str:
    """The commit in words: 'commit 0123456789ab', and whether the tree had other changes."""
    number, _, changes = about.get("commit", "unknown").partition(" ")
    return f"commit {number[:12]} {changes}".strip()


def table(files: list[dict]) -> str:
    """The table of all files' results, in Markdown."""
    parts = []
    for about in files:
        versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
        parts.append(f"{about['device']}, {about['date']}, {versions}, {commit(about)}:\n")
        parts += ["| figure | measured | target | command |", "|---|---|---|---|", *rows(about), ""]
    return "\n".join(parts).strip()


def faults(files: list[dict]) -> str:
    """The table of all files' faults, in Markdown; a line where there are none."""
    if not files:
        return "No results yet."
    parts = []
    for about in files:
        where = about.get("processor", about["device"])
        versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items() if "jax" in name)
        parts.append(f"{where}, {about['date']}, {versions}, {commit(about)}:\n")
        parts += ["| fault | tried | survived | lost | command |", "|---|---|---|---|---|"]
        for run in about["runs"]:
            command = f"`{run['command']}`"
            for fault in [Fault(**row) for row in run.get("faults", ())]:
                numbers = " | ".join(f"{n:,}" for n in (fault.tried, fault.tried - fault.lost, fault.lost))
                parts.append(f"| {fault.fault} | {numbers} | {command} |")
                command = ""
            if not run.get("faults"):
                parts.append(f"| {run['name']}: {run['status']} | | | | {command} |")
        parts.append("")
    return "\n".join(parts).strip()


def insert(readme: str, text: str, name: str) -> str:
    """The README with `text` between the markers of a table.

    Raises:
      SystemExit: the markers are not there once each, in order.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    if readme.count(begin) != 1 or readme.count(end) != 1 or readme.index(begin) > readme.index(end):
        raise SystemExit(f"README.md: expected {begin} and then {end}, once each")
    before, rest = readme.split(begin)
    return f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if README.md is out of date")
    parser.add_argument("--results", type=pathlib.Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--readme", type=pathlib.Path, default=ROOT / "README.md")
    args = parser.parse_args()
    old = args.readme.read_text()
    new = insert(old, table(newest(args.results)), PERFORMANCE)
    new = insert(new, faults(newest(args.results / RELIABILITY)), RELIABILITY)
    if args.check and new != old:
        print("README.md: found other tables than benchmarks/results/ gives: run python benchmarks/table.py")
        return 1
    if not args.check:
        args.readme.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
