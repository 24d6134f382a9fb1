"""Makes the tables of README.md, docs/performance.md and docs/training.md from the files in benchmarks/results/.

What was measured comes from the files themselves, the newest of each processor. README.md has the figures of the runs
in BRIEF that have a target, docs/performance.md has all. What was counted for GPUs that were not there comes from gpu/,
what was tried on purpose from reliability/, and how good the trained networks are, for docs/training.md, from method/.

    python benchmarks/table.py            # writes all, each between its two markers
    python benchmarks/table.py --check    # fails if a page says something else
"""

import argparse
import json
import pathlib
import sys

from report import Fault, Result

ROOT = pathlib.Path(__file__).resolve().parent.parent
MEASURED, COUNTED, RELIABILITY, METHOD = "measured", "counted", "reliability", "method"
BRIEF = ("step", "step-cifar10", "elasticity", "startup", "loader")  # runs whose figures README.md has
AIMS = {  # at most, by space: ratios and kernels of what is counted
    "bignas": {"step": 0.70, "biggest": 0.70, "random": 0.80, "smallest": 0.75},
    "attentive_nas": {"step": 0.75},
    "cifar10": {},
}
KERNELS = {"bignas": {"biggest": 1200, "update": 60}}


def where(about: dict) -> str:
    """What a file was measured on."""
    return about.get("processor", about["device"])


def newest(folder: pathlib.Path) -> list[dict]:
    """The files' contents, the newest of each processor, by its name."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        about = json.loads(path.read_text())
        if where(about) not in found or about["date"] >= found[where(about)]["date"]:
            found[where(about)] = about
    return [found[name] for name in sorted(found)]


def rows(about: dict, brief: bool) -> list[str]:
    """A line for each figure that has a target or, unless `brief`, is shown.

    A run without figures gets a line with its status.
    """
    lines = []
    for run in about["runs"]:
        if brief and run["name"] not in BRIEF:
            continue
        older = run.get("commit", about["commit"]) != about["commit"]
        command = f"`{run['command']}`" + (f", {run.get('date', about['date'])}, {commit(run)}" if older else "")
        results = [Result(**row) for row in run.get("results", ())]
        for result in (r for r in results if r.target is not None or (r.shown and not brief)):
            value = f"{result.value:.{3 if result.reached else 4}g} {result.unit}".strip()
            met = value if result.reached else f"{value} (short)"
            lines.append(f"| {result.name} | {met} | {result.bound} | {command} |")
            command = ""
        if not results:
            lines.append(f"| {run['name']} | {run['status']} | | {command} |")
    return lines


def commit(about: dict) -> str:
    """The commit in words: 'commit 0123456789ab', and whether the tree had other changes."""
    if "commit" not in about:
        return "an earlier commit"
    number, _, changes = about["commit"].partition(" ")
    return f"commit {number[:12]} {changes}".strip()


def counted(folder: pathlib.Path) -> str:
    """The table of what benchmarks/gpu_programs.py counted, in Markdown: a column for each release of JAX."""
    files = [json.loads(path.read_text()) for path in sorted(folder.glob("counted-*.json"))]
    if not files:
        return "Not counted yet."
    versions = sorted({about["jax"] for about in files}, key=lambda v: [int(n) for n in v.split(".")], reverse=True)
    lines = [f"| figure | {' | '.join(f'JAX {version}' for version in versions)} | target | command |"]
    lines.append("|---|" + "---|" * len(versions) + "---|---|")
    for space in sorted({about["space"] for about in files}, key=list(AIMS).index):
        of: dict[str, dict] = {}
        for about in (about for about in files if about["space"] == space):
            before = of.get(about["jax"], {"ratios": {}, "programs": {}})  # programs may be counted a part at a time
            of[about["jax"]] = about | {part: before[part] | about[part] for part in ("ratios", "programs")}
        (steps,) = {about["steps"] for about in of.values()}
        further = "" if steps == 200 else f" --steps {steps}"
        commits = dict.fromkeys(commit(about) for about in files if about["space"] == space)
        command = f"`make gpu-programs GPU_ARGS='--space {space}{further}'`, {', '.join(commits)}"
        for figure, values, aim in _figures(space, of):
            cells = [_cell(values.get(version), aim) for version in versions]
            lines.append(f"| {figure} | {' | '.join(cells)} | {f'at most {aim:g}' if aim else ''} | {command} |")
            command = ""
    return "\n".join(lines)


def _figures(space: str, of: dict[str, dict]) -> list[tuple[str, dict[str, float], float | None]]:
    """(figure, its value by release of JAX, what it should be at most) of a space, given its counts by release."""
    rows, aims = [], AIMS[space]
    for name in ("step", "biggest", "random", "smallest"):
        values = {version: about["ratios"][name] for version, about in of.items() if name in about["ratios"]}
        rows.append((f"{space}, {name}: bytes over PyTorch eager's", values, aims.get(name)))
    for name in ("biggest", "update"):
        programs = {version: about["programs"] for version, about in of.items() if name in about["programs"]}
        kernels = {version: found[name]["kernels"] for version, found in programs.items()}
        rows.append((f"{space}, {name}: kernels", kernels, KERNELS.get(space, {}).get(name)))
    names = sorted({name for about in of.values() for name in about["ratios"]})
    kinds = [name for name in names if name.endswith("mean over its own slice")]
    for kind in kinds:
        values = {version: about["ratios"][kind] for version, about in of.items() if kind in about["ratios"]}
        rows.append((f"{space}, {kind}: bytes", values, 1.1))
    return [row for row in rows if row[1]]


def _cell(value: float | None, aim: float | None) -> str:
    """A value in words, and whether it misses its aim."""
    if value is None:
        return ""
    words = f"{value:,.0f}" if value >= 10 else f"{value:.2f}"
    return f"{words} (short)" if aim is not None and value > aim else words


def table(files: list[dict], brief: bool) -> str:
    """The table of all files' results, in Markdown."""
    parts = []
    for about in files:
        versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
        parts.append(f"{where(about)}, {about['date']}, {versions}, {commit(about)}:\n")
        parts += ["| figure | measured | target | command |", "|---|---|---|---|", *rows(about, brief), ""]
    return "\n".join(parts).strip()


def faults(files: list[dict]) -> str:
    """The table of all files' faults, in Markdown; a line where there are none."""
    if not files:
        return "No results yet."
    parts = []
    for about in files:
        versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items() if "jax" in name)
        parts.append(f"{where(about)}, {about['date']}, {versions}, {commit(about)}:\n")
        parts += ["| fault | tried | survived | lost | command |", "|---|---|---|---|---|"]
        for run in about["runs"]:
            older = run.get("commit", about["commit"]) != about["commit"]
            command = f"`{run['command']}`" + (f", {commit(run)}" if older else "")
            for fault in [Fault(**row) for row in run.get("faults", ())]:
                numbers = " | ".join(f"{n:,}" for n in (fault.tried, fault.tried - fault.lost, fault.lost))
                parts.append(f"| {fault.fault} | {numbers} | {command} |")
                command = ""
            if not run.get("faults"):
                parts.append(f"| {run['name']}: {run['status']} | | | | {command} |")
        parts.append("")
    return "\n".join(parts).strip()


def insert(page: str, text: str, name: str, of: str) -> str:
    """The page with `text` between the markers of a table.

    Raises:
      SystemExit: the markers are not there once each, in order.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
        raise SystemExit(f"{of}: expected {begin} and then {end}, once each")
    before, rest = page.split(begin)
    return f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is out of date")
    parser.add_argument("--results", type=pathlib.Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--root", type=pathlib.Path, default=ROOT, help="folder of README.md and docs/")
    args = parser.parse_args()
    measured = newest(args.results)
    tables = {
        "README.md": {
            MEASURED: table(measured, brief=True),
            COUNTED: counted(args.results / "gpu"),
            RELIABILITY: faults(newest(args.results / RELIABILITY)),
        },
        "docs/performance.md": {MEASURED: table(measured, brief=False)},
        "docs/training.md": {METHOD: table(newest(args.results / METHOD), brief=False) or "Not run yet."},
    }
    old = {name: (args.root / name).read_text() for name in tables}
    new = {}
    for name, parts in tables.items():
        new[name] = old[name]
        for part, text in parts.items():
            new[name] = insert(new[name], text, part, name)
    stale = [name for name in tables if new[name] != old[name]]
    if args.check and stale:
        print(f"{', '.join(stale)}: found other tables than benchmarks/results/ gives: run python benchmarks/table.py")
        return 1
    for name in stale:
        (args.root / name).write_text(new[name])
    return 0


if __name__ == "__main__":
    sys.exit(main())
