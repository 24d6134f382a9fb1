"""Evaluations as users see them: architectures from the command line, a table, a JSON file."""

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from bignas_jax.config.options import Options
from bignas_jax.data.fingerprint import fingerprint
from bignas_jax.errors import ConfigError, FileError
from bignas_jax.evaluation import Score
from bignas_jax.files import in_turn, read_json, write_json
from bignas_jax.forms import check_form
from bignas_jax.programs.buckets import Bucket
from bignas_jax.programs.kept import use_compilation_cache
from bignas_jax.programs.processes import own_index, together
from bignas_jax.runs.agree import check_images, check_options, check_same
from bignas_jax.runs.checkpoint import Checkpoints
from bignas_jax.runs.identity import Use, check_run, other_figures
from bignas_jax.runs.session import Session
from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.cost import Cost, count
from bignas_jax.spaces.layers import statistics
from bignas_jax.spaces.naming import extremes, read_architectures
from bignas_jax.text import aligned, tell

ROW = {
    "name": str,
    "architecture": {"resolution": int},
    **dict.fromkeys(("macs", "params", "images"), int),
    **dict.fromkeys(("top1", "top5"), float),
    **dict.fromkeys(("loss", "images_per_second"), (float, None)),
}


def assess(
    session: Session,
    weights: Any,
    archs: Mapping[Architecture, Bucket],
    split: str,
    names: Mapping[str, Architecture] | None = None,
    statistics: Mapping[Architecture, Any] | None = None,
) -> list[dict[str, Any]]:
    """Calibrates and scores architectures whose executables are compiled.

    Args:
      session: of the run.
      weights: of the supernet.
      archs: with the bucket that each runs in.
      split: the images to score on.
      names: a name for each row; an architecture may have several. By default they are named as `extremes` names them.
      statistics: of their batch norms, to take in place of calibrated ones.
    Returns:
      A row for each name: name, architecture, macs, params, top1, top5, loss, images, images_per_second.
    """
    if names is None:
        known = {arch: name for name, arch in extremes(session.space).items()}
        names = {known.get(arch, f"arch{n + 1}"): arch for n, arch in enumerate(archs)}
    scores = session.evaluate(weights, archs, split, statistics)
    classes = session.options.model.num_classes
    return [
        _row(name, arch, count(session.space, arch, classes), scores[arch]) for name, arch in names.items()
    ]


def _row(name: str, arch: Architecture, cost: Cost, score: Score) -> dict[str, Any]:
    return {
        "name": name,
        "architecture": arch.to_dict(),
        "macs": cost.macs,
        "params": cost.params,
        "top1": score.top1,
        "top5": score.top5,
        "loss": score.loss,
        "images": score.images,
        "images_per_second": round(score.images_per_second, 1),
    }


@together
def evaluate_run(
    options: Options,
    workdir: str | pathlib.Path,
    names: Sequence[str],
    split: str,
    checkpoint: str = "newest",
    stored: bool = False,
    rounded: bool = False,
) -> tuple[list[dict[str, Any]], int, list[str]]:
    """Evaluates architectures on a run's checkpoint, each in an executable of its own.

    Args:
      names: as `read_architectures` takes them. split: 'val', 'holdout' or 'train'.
      checkpoint: 'newest', 'best' or a step.
      stored: evaluate the biggest architecture with the batch-norm statistics that an imported checkpoint keeps for it,
        in place of calibrated ones.
      rounded: evaluate with weights and activations rounded to 8 bits.
    Returns:
      The rows of `assess`, the step of the checkpoint, and what makes the rows others than the run's own, as
      `identity.other_figures` gives it.
    Raises:
      ValueError: no such checkpoint, no such images, or an architecture is not in the space; one line.
    """
    use_compilation_cache()
    check_options(options)
    if stored and rounded:
        raise ConfigError("--quantized: found --statistics=stored, expected calibrated ones: leave one of the two out")
    check_same("--arch, --split, --statistics, --quantized", [*names, split, stored, rounded])
    use = Use.HELD_OUT if split == "holdout" else Use.EVALUATION
    check_run(options, workdir, use)
    checkpoints = Checkpoints(workdir, read_only=True, on_damage=options.checkpoint.on_damage)
    try:
        session = Session.open(options, run=workdir, use=use, rounded=rounded)
        images = fingerprint(session.dataset)
        check_images(images)
        session.check_evaluation(split)
        found = read_architectures(session.space, names)
        weights, step = checkpoints.weights(session.shapes, session.mesh, checkpoint)
        check_same("--checkpoint", step)
        statistics = _stored(session, found, checkpoints, step) if stored else None
    finally:
        checkpoints.close()
    suffix = " (stored)" if stored else " (8 bits)" if rounded else ""
    names = {f"{name}{suffix}": arch for name, arch in found.items()}
    archs = {arch: Bucket(arch, masked=False) for arch in found.values()}
    session.compile_evaluation(archs.values(), progress=own_index() == 0, calibrate=not stored)
    rows = assess(session, weights, archs, split, names, statistics)
    return rows, step, other_figures(workdir, options, images)


def _stored(
    session: Session, found: Mapping[str, Architecture], checkpoints: Checkpoints, step: int
) -> dict[Architecture, Any]:
    biggest = session.space.biggest
    others = [label for label, arch in found.items() if arch != biggest]
    if others:
        raise ConfigError(
            f"--statistics=stored: found {', '.join(others)}, expected --arch max alone: a checkpoint keeps statistics "
            "of the biggest architecture only, those of others are calibrated"
        )
    widths = statistics(session.space.layout(biggest))
    return {biggest: checkpoints.statistics(widths, session.mesh, step)}


def read(workdir: str | pathlib.Path, name: str, step: int) -> list[dict[str, Any]]:
    """The rows that `write` left under a name for a step; none if there are none.

    Raises:
      ConfigError: their file holds something else.
    """
    path = pathlib.Path(workdir) / f"evaluation_{name}.json"
    try:
        return list(_rows(path, step).values())
    except FileError as error:
        raise ConfigError(
            f"{path}: found something that an evaluation did not write ({error}): move it away, and run eval.py"
        ) from error


def _key(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["name"], json.dumps(row["architecture"], sort_keys=True)


def _rows(path: pathlib.Path, step: int, changed: Sequence[str] = ()) -> dict[tuple[str, str], dict[str, Any]]:
    """The rows of a file by name and architecture, if they are of this step and of these changes. Raises FileError."""
    try:
        found = read_json(path)
    except FileNotFoundError:
        return {}
    check_form(found, {"step": int, "rows": [ROW]})
    same = found["step"] == step and found.get("changed", []) == list(changed)
    return {_key(row): row for row in found["rows"]} if same else {}


def left(workdir: str | pathlib.Path, step: int) -> list[dict[str, Any]]:
    """The rows that a finished run ended with: those of the slice that a child began as, and those of its last step.

    Raises:
      ConfigError: its last step was not evaluated.
    """
    rows = read(workdir, "val", step)
    if not rows:
        raise ConfigError(
            f"{workdir} has no evaluation of its last step, {step}: run eval.py with this --workdir, or this command "
            "with the run's own config"
        )
    return [*read(workdir, "before", 0), *rows]


def write(
    rows: Sequence[Mapping[str, Any]],
    workdir: str | pathlib.Path,
    split: str,
    step: int,
    name: str = "",
    changed: Sequence[str] = (),
) -> pathlib.Path:
    """Writes rows to evaluation_<split>.json in the run's folder, beside those of other architectures at that step.

    A row takes the place of an earlier one with its name and its architecture. Several processes may do so at once.

    Args:
      name: stands in the file's name for the split's.
      changed: what makes them others than the run's own. They go to evaluation_<split>_changed.json then, which says
        so, and which holds rows with the same changes alone.
    """
    path = pathlib.Path(workdir) / f"evaluation_{name or split}{'_changed' if changed else ''}.json"
    with in_turn(path):
        try:
            kept = _rows(path, step, changed)
        except FileError as error:
            aside = path.with_suffix(".damaged.json")
            path.replace(aside)
            tell(f"{path}: found something that an evaluation did not write ({error}); it is {aside} now")
            kept = {}
        kept |= {_key(row): dict(row) for row in rows}
        rows = [{name: _finite(value) for name, value in row.items()} for row in kept.values()]
        about = {"step": step, "split": split} | ({"changed": list(changed)} if changed else {})
        write_json(path, about | {"rows": rows}, indent=2)
    return path


def _finite(value: Any) -> Any:
    """The value; None for a number that JSON has not, such as a loss of NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of `assess` as text."""
    head = ("architecture", "resolution", "MACs (M)", "params (M)", "top-1 %", "top-5 %", "images/s")
    body = [
        (
            row["name"],
            str(row["architecture"]["resolution"]),
            f"{row['macs'] / 1e6:,.2f}",
            f"{row['params'] / 1e6:,.3f}",
            f"{100 * row['top1']:.2f}",
            f"{100 * row['top5']:.2f}",
            f"{row['images_per_second']:,.0f}" if row["images_per_second"] else "-",
        )
        for row in rows
    ]
    return aligned(head, body)
