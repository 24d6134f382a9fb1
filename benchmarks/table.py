"""Makes the README's table of speed from the files in benchmarks/results/, the newest of each device.

    python benchmarks/table.py            # writes it into README.md, between its two markers
    python benchmarks/table.py --check    # fails if README.md says something else
"""

import argparse
import json
import pathlib
import sys

from report import Result

ROOT = pathlib.Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- performance: begin -->", "<!-- performance: end -->"


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


def insert(readme: str, text: str) -> str:
    """The README with `text` between the markers.

    Raises:
      SystemExit: the markers are not there once each, in order.
    """
    if readme.count(BEGIN) != 1 or readme.count(END) != 1 or readme.index(BEGIN) > readme.index(END):
        raise SystemExit(f"README.md: expected {BEGIN} and then {END}, once each")
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if README.md is out of date")
    parser.add_argument("--results", type=pathlib.Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--readme", type=pathlib.Path, default=ROOT / "README.md")
    args = parser.parse_args()
    old = args.readme.read_text()
    new = insert(old, table(newest(args.results)))
    if args.check and new != old:
        print("README.md: found another table than benchmarks/results/ gives: run python benchmarks/table.py")
        return 1
    if not args.check:
        args.readme.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
