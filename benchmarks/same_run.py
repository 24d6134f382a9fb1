"""What two runs' folders do not have alike, beyond what no two runs have alike: times, and the folders' own names."""

import json
import logging
import pathlib

import numpy as np

from bignas_jax.search.report import page

NOISE = ("images_per_second", "images_per_minute", "seconds", "workdir")
FILES = (
    "config.json",
    "classes.json",
    "data.json",
    "metrics.jsonl",
    "evaluation_val.json",
    "evaluation_before.json",
    "search/evaluations.jsonl",
    "search/result.json",
)
PICTURE, REPORT = "search/front.png", "search/report.html"


def differences(found: pathlib.Path, expected: pathlib.Path) -> list[str]:
    """A line for each file, step or array of the two folders that is not alike."""
    here, there = files(found), files(expected)
    lines = [f"left behind: {name}" for name in sorted(here - there)]
    lines += [f"missing: {name}" for name in sorted(there - here)]
    names = [*FILES, *(name for name in there if name.endswith("architecture.json"))]
    for name in (n for n in names if n in here & there):
        if values(found / name) != values(expected / name):
            lines.append(f"{name} differs")
    if PICTURE in here & there and (found / PICTURE).read_bytes() != (expected / PICTURE).read_bytes():
        lines.append(f"{PICTURE} differs")
    if REPORT in here and (found / REPORT).read_text() != page.page(json.loads((found / FILES[-1]).read_text())):
        lines.append(f"{REPORT} is not that of {FILES[-1]}")
    for step in sorted(steps(found) & steps(expected), key=int):
        ours, theirs = (arrays(folder / "checkpoints" / step) for folder in (found, expected))
        lines += [f"step {step}: {name}" for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    return lines


def files(run: pathlib.Path) -> set[str]:
    """The files of a run; a checkpoint counts as one, by its step. TensorBoard's events and locks are left out.

    A continued run has a file of events for each of its processes.
    """
    found = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    found = {name for name in found if not name.startswith("events.out.") and not name.endswith(".lock")}
    found = {name for name in found if not name.startswith("checkpoints/")}
    return found | {f"checkpoints/{path.name}" for path in (run / "checkpoints").glob("*")}


def steps(run: pathlib.Path) -> set[str]:
    """The steps that a run has checkpoints of."""
    return {path.name for path in (run / "checkpoints").glob("[0-9]*") if path.name.isdecimal()}


def values(path: pathlib.Path) -> object:
    """What a file of JSON, or of lines of it, holds, without what no two runs have alike."""
    text = path.read_text()
    return _quiet([json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text))


def _quiet(value: object) -> object:
    if isinstance(value, dict):
        return {key: _quiet(v) for key, v in value.items() if key not in NOISE}
    return [_quiet(v) for v in value] if isinstance(value, list) else value


def arrays(step: pathlib.Path) -> dict[str, bytes]:
    """Every array of a checkpoint, read by orbax alone, as bytes, and the score that it was saved with."""
    import jax
    import orbax.checkpoint as ocp

    logging.getLogger("absl").setLevel(logging.ERROR)
    score = step / "metrics" / "metrics"
    found = {"score": score.read_bytes()} if score.exists() else {}
    for item in ("params", "ema", "training"):
        if (step / item).is_dir():
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
                form = reader.metadata(step / item).item_metadata.tree
                as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), form)
                tree = reader.restore(step / item, ocp.args.PyTreeRestore(restore_args=as_numpy))
            leaves = jax.tree_util.tree_leaves_with_path(tree)
            found |= {f"{item}{jax.tree_util.keystr(path)}": np.asarray(leaf).tobytes() for path, leaf in leaves}
    return found
