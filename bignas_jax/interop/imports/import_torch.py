"""Imports a supernet that PyTorch-BigNAS, AttentiveNAS, AlphaNet or Once-for-All trained, as a run's folder."""

import contextlib
import dataclasses
import hashlib
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from bignas_jax.config import fields as configs
from bignas_jax.config.files import to_json
from bignas_jax.config.options import Options
from bignas_jax.config.recipes import RECIPES, load_config
from bignas_jax.errors import ConfigError, WeightsError
from bignas_jax.files import locked, write_json, write_text
from bignas_jax.interop.imports.bignas_names import Account, Shape, account, read_state_dict
from bignas_jax.interop.imports.torch_file import listed, read_checkpoint, to_float32
from bignas_jax.programs.processes import alone
from bignas_jax.runs.checkpoint import Checkpoints
from bignas_jax.spaces.cost import count
from bignas_jax.spaces.naming import extremes
from bignas_jax.spaces.registry import space_of
from bignas_jax.text import aligned

NOTE = "imported.json"
CLASSIFIER = "classifier.linear.linear"


@dataclasses.dataclass(frozen=True)
class Imported:
    """A description of an import.

    Attributes:
      file: the checkpoint's path.
      sha256: the checkpoint's SHA-256.
      entry: the entry of the checkpoint that held the weights.
      counters: the epoch or step that the checkpoint states.
      tensors: how many tensors were used as parameters and as statistics.
      ignored: how many tensors of each kind were ignored.
      params: the size of the supernet's parameters, in numbers.
    """

    file: str
    sha256: str
    entry: str
    counters: Mapping[str, int]
    tensors: Mapping[str, int]
    ignored: Mapping[str, int]
    params: int


def import_checkpoint(
    options: Options, workdir: str | pathlib.Path, file: str | pathlib.Path, weights: str = ""
) -> Imported:
    """Writes the supernet of a PyTorch checkpoint into a new run's folder. If it does not fit, nothing is written.

    The folder gets config.json, imported.json and a checkpoint of step 0. The checkpoint holds the weights, and the
    batch-norm statistics that were stored for the biggest architecture.

    Args:
      options: of the run, as `flags.parse` returns them.
      workdir: the run's folder.
      file: the PyTorch checkpoint.
      weights: 'model' or 'ema', if the file has both.
    Raises:
      ConfigError: the folder is not empty.
      WeightsError: the file cannot be read, or its tensors do not fit the config's space. `details` lists them.
    """
    alone(options.distributed, "an import")
    if options.arch:
        raise ConfigError("config.arch: found an architecture, expected a supernet's config, such as configs/bignas.py")
    workdir, space = pathlib.Path(workdir), space_of(options.space)
    check_unused(workdir)
    found = read_checkpoint(file, weights)
    shapes = {name: tuple(tensor.shape) for name, tensor in found.tensors.items()}
    held = account(space, options.model.num_classes, shapes)
    if not held.fits:
        raise WeightsError(f"{file}: {_misfit(held, _hint(options, shapes, held))}", _details(held))
    used = {name: tensor for name, tensor in found.tensors.items() if name not in held.idle}
    arrays = to_float32(file, used)
    params, statistics = read_state_dict(space, arrays)
    moments = 2 * len(statistics)
    idle = {"shortcuts inside stages, which never run": len(held.idle)} if held.idle else {}
    stored = sum(array.size for pair in statistics.values() for array in pair)
    result = Imported(
        file=str(pathlib.Path(file).absolute()),
        sha256=_sha256(file),
        entry=found.entry,
        counters=found.counters,
        tensors={"parameters": len(arrays) - moments, "stored statistics of MAX": moments},
        ignored={**found.ignored, **idle},
        params=sum(array.size for array in arrays.values()) - stored,
    )
    with _locked(workdir):
        check_unused(workdir)  # another import may have come first
        _write(options, workdir, result, params, statistics)
    return result


def check_unused(workdir: pathlib.Path) -> None:
    """Refuses a folder that is not empty. It may hold the files of an import that did not finish.

    Raises:
      ConfigError: the folder holds files that could be lost, or it is not a folder.
    """
    if not workdir.exists():
        return
    if not workdir.is_dir():
        raise ConfigError(f"--workdir: {workdir} is a file, expected a new folder")
    there = {path.name for path in workdir.iterdir()} - {".lock"}
    steps = [path for path in (workdir / "checkpoints").glob("[0-9]*") if path.name.isdecimal()]
    unfinished = NOTE in there and there <= {NOTE, f"{NOTE}.tmp", "config.json", "config.json.tmp", "checkpoints"}
    if there and (steps or not unfinished):
        held = f"a run with {len(steps)} checkpoints" if steps else listed(sorted(there), 3)
        raise ConfigError(f"--workdir: {workdir} already holds {held}, expected a new or empty folder; name another")


@contextlib.contextmanager
def _locked(workdir: pathlib.Path) -> Iterator[None]:
    """The run's folder, for this import alone."""
    try:
        with locked(workdir, "import"):
            yield
    except OSError as error:
        raise ConfigError(
            f"--workdir: cannot write to {workdir} ({error.strerror}): make room, or give another folder"
        ) from error


def _write(options: Options, workdir: pathlib.Path, result: Imported, params: Any, statistics: Any) -> None:
    """Writes the note first and the checkpoint last, so that an import that did not finish can be repeated."""
    write_json(workdir / NOTE, dataclasses.asdict(result), indent=2)
    write_text(workdir / "config.json", to_json(options))
    checkpoints = Checkpoints(workdir)
    try:
        checkpoints.save_imported(params, statistics)
    finally:
        checkpoints.close()


def _sha256(file: str | pathlib.Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _misfit(held: Account, hint: str) -> str:
    """The account in one line, with one tensor of each kind."""
    parts = []
    if held.missing:
        name, shape = next(iter(held.missing.items()))
        parts.append(f"{len(held.missing)} tensors missing ({name}, expected {_shape(shape)})")
    if held.misshapen:
        name, (found, expected) = next(iter(held.misshapen.items()))
        parts.append(f"{len(held.misshapen)} of another shape ({name}: {_found(found, expected)})")
    if held.unexpected:
        name, shape = next(iter(held.unexpected.items()))
        parts.append(f"{len(held.unexpected)} unexpected ({name} {_shape(shape)})")
    return f"does not fit the config's space and classes: {'; '.join(parts)}; {hint}"


def _details(held: Account) -> str:
    """The account in lines, the first tensors of each kind."""
    kinds = {
        "missing": [f"{name}, expected {_shape(shape)}" for name, shape in held.missing.items()],
        "of another shape": [
            f"{name}: {_found(found, expected)}" for name, (found, expected) in held.misshapen.items()
        ],
        "unexpected": [f"{name} {_shape(shape)}" for name, shape in held.unexpected.items()],
    }
    indent = "\n  "
    return "\n".join(
        f"{kind} ({len(lines)}):{indent}{listed(lines, between=indent)}" for kind, lines in kinds.items() if lines
    )


def _found(found: Shape, expected: Shape) -> str:
    return f"found {_shape(found)}, expected {_shape(expected)}"


def _shape(shape: Shape) -> str:
    return str(list(shape))


def _hint(options: Options, shapes: Mapping[str, Shape], held: Account) -> str:
    """The advice in the message about tensors that do not fit."""
    classes = shapes.get(f"{CLASSIFIER}.bias", (options.model.num_classes,))[0]
    flag = f"--config.model.num_classes={classes}"
    if account(space_of(options.space), classes, shapes).fits:
        return f"the classifier has {classes} classes: {flag}"
    for path in sorted(RECIPES.glob("[!_]*.py")):
        try:
            recipe = load_config(path)
            configs.validate(recipe)
        except ConfigError:
            continue  # a recipe that does not load yet must not hide the other hints
        if account(space_of(recipe.space), classes, shapes).fits:
            wanted = "" if recipe.model.num_classes == classes else f" {flag}"
            return f"the tensors are those of --config configs/{path.name}{wanted}"
    if len(held.missing) == len(account(space_of(options.space), classes, {}).missing):
        return (
            "none of its names is known: expected a whole supernet of PyTorch-BigNAS, AttentiveNAS, AlphaNet or "
            "Once-for-All"
        )
    return "set config.space to the choices that it was trained with"


def table(result: Imported, options: Options) -> str:
    """A table of the tensors used and ignored, and of the biggest and the smallest architecture, as text."""
    body = [(f"used: {kind}", f"{number:,}") for kind, number in result.tensors.items()]
    body += [(f"ignored: {kind}", f"{number:,}") for kind, number in result.ignored.items()]
    space = space_of(options.space)
    costs = {name: count(space, arch, options.model.num_classes) for name, arch in extremes(space).items()}
    ends = [(name, f"{cost.macs / 1e6:,.2f}", f"{cost.params / 1e6:,.3f}") for name, cost in costs.items()]
    ends.append(("supernet", "-", f"{result.params / 1e6:,.3f}"))
    parts = [aligned(("tensors", "number"), body)]
    parts.append(aligned(("architecture", "MACs (M)", "params (M)"), ends))
    return "\n\n".join(parts)
