"""What a search left in a run's folder, as values."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from bignas_jax.errors import ConfigError
from bignas_jax.spaces.architecture import Architecture


@dataclasses.dataclass(frozen=True)
class Found:
    """An architecture that a search scored.

    Attributes:
      name: of the budget that it won; '' for others.
      arch: the architecture.
      macs: multiply-adds of an image.
      params: trained parameters.
      latency_ms: estimated milliseconds; None where the search measured none.
      top1: fraction of the held-out images whose label comes first.
      loss: mean cross-entropy on the held-out images; None if it is no number, or not known.
      val_top1: the top-1 on the validation split; None for all but the winners.
      own: the user's own cost; None where the search had none.
    """

    name: str
    arch: Architecture
    macs: int
    params: int
    latency_ms: float | None
    top1: float
    loss: float | None
    val_top1: float | None = None
    own: float | None = None


def winners(result: Mapping[str, Any]) -> list[Found]:
    """The winner of each budget, in order."""
    scored = {row["number"]: row for row in result["evaluations"]}
    final = {row["name"]: row for row in result["final"]}
    return [_found(scored[budget["winner"]], budget["name"], final[budget["name"]]["top1"])
            for budget in result["budgets"]]  # fmt: skip


def complete(result: Mapping[str, Any]) -> list[Found]:
    """The architectures that were scored on all held-out images, in the order of the search."""
    return [_found(row) for row in result["evaluations"] if row["complete"]]


def _found(row: Mapping[str, Any], name: str = "", val_top1: float | None = None) -> Found:
    arch = Architecture.from_dict(row["architecture"])
    values = (row[key] for key in ("macs", "params", "latency_ms", "top1", "loss"))
    return Found(name, arch, *values, val_top1, row.get("own"))


def front(found: Iterable[Found], *costs: str) -> list[Found]:
    """Those that no other beats in accuracy and these costs, from the cheapest by the first one."""
    kept: list[tuple[list[float], Found]] = []
    # What beats another stands before it in this order.
    for own, one in sorted((([getattr(one, cost) for cost in costs], one) for one in found),
                           key=lambda pair: (pair[0], -pair[1].top1)):  # fmt: skip
        if not any(r.top1 >= one.top1 and all(a <= b for a, b in zip(theirs, own, strict=True)) for theirs, r in kept):
            kept.append((own, one))
    return [one for _, one in kept]


def read(workdir: pathlib.Path, step: int, hint: str) -> dict[str, Any]:
    """The result of the search of this checkpoint.

    Args:
      workdir: the run's folder.
      step: of the checkpoint.
      hint: the call that would make one.
    Raises:
      ConfigError: there is none, or it is of another checkpoint.
    """
    path = workdir / "search" / "result.json"
    try:
        result = json.loads(path.read_text())
        searched = result["run"]["step"]
    except FileNotFoundError:
        raise ConfigError(f"{workdir}: found no search in it, expected one; call {hint} first") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: found something that a search did not write ({error}); call {hint}") from error
    if searched != step:
        raise ConfigError(
            f"{path}: found the search of step {searched}, expected step {step}, which is open; call {hint}, or open "
            f"the run with checkpoint={searched}"
        )
    return result


def best(result: Mapping[str, Any], limits: Mapping[str, float], hint: str) -> Found:
    """The most accurate architecture of a search within limits; of equals, as the search's winners, by loss and cost.

    Args:
      result: of a search.
      limits: by kind of cost, such as {'macs': 300e6}.
      hint: the call that would find one.
    Raises:
      ConfigError: the search scored none within them.
    """
    check_measured(result, limits)
    inside = [one for one in complete(result) if all(getattr(one, kind) <= limit for kind, limit in limits.items())]
    if not inside:
        raise ConfigError(f"{_said(limits)}: found none within it in the last search, expected some; call {hint} first")
    cost = result["run"]["cost"]
    return min(inside, key=lambda one: (-one.top1, math.inf if one.loss is None else one.loss, getattr(one, cost)))


def check_measured(result: Mapping[str, Any], kinds: Iterable[str]) -> None:
    """Refuses a latency or a cost of the user's own, if the search had none."""
    if "own" in kinds and result["run"].get("own_cost") is None:
        raise ConfigError("own: the last search had none, expected one with run.search(own_cost=...); call it first")
    if "latency_ms" in kinds and result["latency"] is None:
        raise ConfigError(
            "latency_ms: the last search estimated none, expected one with run.search(max_latency_ms=...) or "
            "run.search(cost='latency_ms'); call it first"
        )


def _said(limits: Mapping[str, float]) -> str:
    return ", ".join(f"{kind}={limit:.10g}" for kind, limit in limits.items())


def hint(limits: Mapping[str, float]) -> str:
    """The search that would find architectures within these limits, as Python."""
    return f"run.search({', '.join(f'max_{kind}={limit:.10g}' for kind, limit in limits.items())})"


