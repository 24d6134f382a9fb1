"""The evaluations of a run's search, which the predictor of attentive sampling is fitted to."""

import contextlib
import pathlib
from typing import TYPE_CHECKING, Any

from bignas_jax.errors import ConfigError, FileError
from bignas_jax.files import read_json
from bignas_jax.forms import check_form
from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.space import Space

if TYPE_CHECKING:
    from bignas_jax.spaces.predictor import Predictor

_ROWS = [{"architecture": {}, "top1": float}]


def read(space: Space, run: str) -> dict[str, Any]:
    """The evaluations of the last search of a run, as JSON values: `run`, and `rows` of `architecture` and `top1`.

    Args:
      space: the search space, which they must lie in.
      run: the folder of the run.
    Raises:
      ConfigError: there is no search, it is of another space, or it has too few evaluations.
    """
    path = pathlib.Path(run) / "search" / "result.json"
    try:
        result = read_json(path)
        check_form(result, {"evaluations": _ROWS})
        rows = [{name: row[name] for name in ("architecture", "top1")} for row in result["evaluations"]]
        reason = _why_not(space, rows)
    except OSError as error:
        raise ConfigError(
            f"config.sandwich.predictor: cannot read {path} ({error.strerror}), expected the folder of a run that "
            "search.py has searched"
        ) from error
    except FileError as error:
        raise ConfigError(f"config.sandwich.predictor: {path}: {error}, expected what search.py writes") from error
    if reason:
        raise ConfigError(f"config.sandwich.predictor: {path}: {reason}")
    return {"run": run, "rows": rows}


def are_of(found: Any, space: Space, run: str) -> bool:
    """Whether a JSON value holds evaluations of this run, as `read` gives them."""
    with contextlib.suppress(FileError):
        check_form(found, {"run": str, "rows": _ROWS})
        return found["run"] == run and _why_not(space, found["rows"]) is None
    return False


def fitted(space: Space, found: dict[str, Any]) -> "Predictor":
    """A predictor that is fitted to evaluations, as `read` gives them."""
    from bignas_jax.spaces.predictor import Predictor  # with scikit-learn, which no other sampler needs

    rows = found["rows"]
    archs = [Architecture.from_dict(row["architecture"]) for row in rows]
    return Predictor(space).fit(archs, [row["top1"] for row in rows])


def _why_not(space: Space, rows: list[dict[str, Any]]) -> str | None:
    """The reason why a predictor cannot be fitted to these; None if it can."""
    from bignas_jax.spaces.predictor import LEAST  # as in `fitted`

    if len(rows) < LEAST:
        return f"found {len(rows)} evaluations, expected at least {LEAST}"
    for row in rows:
        try:
            space.check(Architecture.from_dict(row["architecture"]))
        except ValueError as error:
            return f"found an evaluation of another search space ({error})"
    return None
