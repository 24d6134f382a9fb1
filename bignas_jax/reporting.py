"""Evaluations as users see them: architectures from the command line, a table, a JSON file."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from bignas_jax import config as configs
from bignas_jax.architecture import Architecture
from bignas_jax.buckets import Bucket
from bignas_jax.checkpoint import Checkpoints
from bignas_jax.config import ConfigError
from bignas_jax.cost import Cost, count
from bignas_jax.evaluation import Score
from bignas_jax.programs import use_compilation_cache
from bignas_jax.session import Session
from bignas_jax.slicing import per_stage
from bignas_jax.space import SearchSpace


def extremes(space: SearchSpace) -> dict[str, Architecture]:
    """The biggest and the smallest architecture as MAX and MIN; as CHILD where they are the same."""
    if space.size == 1:
        return {"CHILD": space.biggest}
    return {"MAX": space.biggest, "MIN": space.smallest}


def read_architectures(space: SearchSpace, names: Sequence[str], flag: str = "--arch") -> dict[str, Architecture]:
    """Architectures by name, from 'max', 'min', the path of a JSON file, or JSON itself.

    Args:
      flag: what the names were given by, for messages.
    Raises:
      ConfigError: a file is missing or malformed, or an architecture is not in the space; one line that names it.
    """
    found = {}
    for name in names:
        label, text = name, name
        try:
            if name in ("max", "min"):
                arch = space.biggest if name == "max" else space.smallest
                found |= {label: known for label, known in extremes(space).items() if known == arch}
                continue
            if not name.lstrip().startswith("{"):
                path = pathlib.Path(name)
                # Searched children are all called architecture.json; their folder tells them apart.
                label = path.parent.name if path.stem == "architecture" and path.parent.name else path.stem
                text = path.read_text()
            else:
                label = f"given{sum(key.startswith('given') for key in found) + 1}"
            arch = per_stage(Architecture.from_json(text))
            space.check(arch)
        except OSError as error:
            raise ConfigError(
                f"{flag}: cannot read {name} ({error.strerror}), expected max, min, a JSON file, or JSON"
            ) from error
        except ValueError as error:
            raise ConfigError(f"{flag} {name}: {error}") from error
        found[_unused(label, found)] = arch
    return found


def _unused(label: str, taken: Mapping[str, Any]) -> str:
    number, free = 2, label
    while free in taken:
        free, number = f"{label}-{number}", number + 1
    return free


def assess(
    session: Session,
    weights: Any,
    archs: Mapping[Architecture, Bucket],
    split: str,
    names: Sequence[str] = (),
    statistics: Mapping[Architecture, Any] | None = None,
) -> list[dict[str, Any]]:
    """Calibrates and scores architectures whose executables are compiled.

    Args:
      names: of the architectures, in order; those of `extremes` by default.
      statistics: of their batch norms, to take in place of calibrated ones.
    Returns:
      A row for each: name, architecture, macs, params, top1, top5, loss, images, images_per_second.
    """
    known = {arch: name for name, arch in extremes(session.space).items()}
    labels = list(names) or [known.get(arch, f"arch{n + 1}") for n, arch in enumerate(archs)]
    scores = session.evaluate(weights, archs, split, statistics)
    classes = session.config.model.num_classes
    return [
        _row(label, arch, count(session.space, arch, classes), scores[arch])
        for label, arch in zip(labels, archs, strict=True)
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


NETWORK_FIELDS = ("config.space.", "config.model.num_classes")
# Images that were trained on must not become held-out ones.
HELD_OUT_FIELDS = ("config.data.source", "config.data.train_split", "config.data.holdout")


def check_run(config: ConfigDict, workdir: str | pathlib.Path, fields: tuple[str, ...]) -> None:
    """Refuses a config that is not that of the run in some fields (by the beginnings of their names).

    Other strides or another activation would leave all shapes as they are, and evaluate a network that nobody trained.

    Raises:
      ConfigError: with the differences.
    """
    path = pathlib.Path(workdir) / "config.json"
    if not path.is_file():
        return
    changes = configs.differences(configs.with_defaults(configs.from_json(path.read_text())), config)
    fatal = [line for line in changes if line.startswith(fields)]
    if fatal:
        raise ConfigError(f"{workdir} was trained with another config ({'; '.join(fatal)}): leave these as they were")


def evaluate_run(
    config: ConfigDict,
    workdir: str | pathlib.Path,
    names: Sequence[str],
    split: str,
    checkpoint: str = "newest",
    stored: bool = False,
) -> tuple[list[dict[str, Any]], int]:
    """Evaluates architectures on a run's checkpoint, each in an executable of its own.

    Args:
      names: as `read_architectures` takes them. split: 'val', 'holdout' or 'train'.
      checkpoint: 'newest', 'best' or a step.
      stored: evaluate the biggest architecture with the batch-norm statistics that an imported checkpoint keeps for it,
        in place of calibrated ones.
    Returns:
      The rows of `assess`, and the step of the checkpoint.
    Raises:
      ValueError: no such checkpoint, no such images, or an architecture is not in the space; one line.
    """
    use_compilation_cache()
    check_run(config, workdir, NETWORK_FIELDS + (HELD_OUT_FIELDS if split == "holdout" else ()))
    checkpoints = Checkpoints(workdir, read_only=True)
    try:
        session = Session.open(config)
        session.check_evaluation(split)
        found = read_architectures(session.space, names)
        weights, step = checkpoints.weights(session.shapes, session.mesh, checkpoint)
        statistics = _stored(session, found, checkpoints, step) if stored else None
    finally:
        checkpoints.close()
    labels = {arch: f"{label} (stored)" if stored else label for label, arch in reversed(found.items())}
    archs = {arch: Bucket(arch, masked=False) for arch in found.values()}
    session.compile_evaluation(archs.values(), calibrate=not stored)
    return assess(session, weights, archs, split, [labels[arch] for arch in archs], statistics), step


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
    return {biggest: checkpoints.statistics(session.shapes, session.mesh, step)}


def write(
    rows: Sequence[Mapping[str, Any]], workdir: str | pathlib.Path, split: str, step: int, name: str = ""
) -> pathlib.Path:
    """Writes rows to evaluation_<split>.json in the run's folder, beside those of other architectures at that step.

    Args:
      name: stands in the file's name for the split's.
    """
    path = pathlib.Path(workdir) / f"evaluation_{name or split}.json"
    kept = {}
    if path.exists():
        before = json.loads(path.read_text())
        kept = {row["name"]: row for row in before["rows"]} if before["step"] == step else {}
    kept |= {row["name"]: dict(row) for row in rows}
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"step": step, "split": split, "rows": list(kept.values())}, indent=2) + "\n")
    temporary.replace(path)
    return path


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


def aligned(head: Sequence[str], body: Sequence[Sequence[str]], left: int = 1) -> str:
    """Lines of text in columns under a head; the first `left` columns begin, the others end in line."""
    widths = [max(len(line[column]) for line in (head, *body)) for column in range(len(head))]

    def text(line: Sequence[str]) -> str:
        cells = [
            cell.ljust(width) if number < left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    return "\n".join([text(head), "  ".join("-" * width for width in widths), *map(text, body)])
