"""What the report needs of a search's result, held against a file that may come from anywhere."""

from typing import Any

from bignas_jax.config.choices import Costs
from bignas_jax.errors import FileError
from bignas_jax.forms import check_form
from bignas_jax.spaces.architecture import Architecture

_COSTS = {"macs": int, "params": int, "latency_ms": (float, None)}
_NETWORK = {"macs": int, "estimated_ms": float, "measured_ms": float}
_EVALUATION = {
    "number": int,
    "architecture": {},
    **_COSTS,
    "top1": float,
    "top5": float,
    "loss": (float, None),
    "images": int,
    "complete": bool,
    "seconds": float,
    "phase": str,
}
_FINAL = {
    "name": str,
    "number": (int, None),
    **_COSTS,
    "holdout_top1": (float, None),
    "top1": float,
    "top5": float,
    "images": int,
}
_LATENCY = {"batch_size": int, "device": str, "blocks": int, "error": (float, None), "networks": [_NETWORK]}
RESULT = {
    "run": {"cost": str, "strategy": str, "step": int, "seconds": float, "images": {"holdout": int, "first_part": int}},
    "config": {},
    "space": {},
    "evaluations": [_EVALUATION],
    "budgets": [{"name": str, "limits": {}, "winner": int, "file": str}],
    "front": [int],
    "final": [_FINAL],
    "predictor": [{"evaluations": int, "tau": float}],
    "latency": (_LATENCY, None),
}


def check(result: Any) -> None:
    """Refuses a result from which no report can be made.

    Raises:
      FileError: the first thing that is wrong with it.
    """
    check_form(result, RESULT)
    cost, costs = result["run"]["cost"], result["run"].get("costs", [])  # earlier versions have one cost alone
    check_form(costs, [str], "run.costs")
    for place, kind in (("run.cost", cost), *((f"run.costs[{n}]", kind) for n, kind in enumerate(costs))):
        if kind not in list(Costs):
            raise FileError(f"{place}: found {kind!r}, expected one of {', '.join(Costs)}")
    check_form(result.get("surface", []), [int], "surface")
    check_form(result["run"].get("workdir", ""), str, "run.workdir")
    numbered = {row["number"]: row for row in result["evaluations"]}
    for place, number in _references(result):
        if number not in numbered:
            raise FileError(f"{place}: found {number}, expected the number of an evaluation")
    for number in result["front"]:
        check_form(numbered[number].get(cost), float, f"{cost} of evaluation {number}, which is on the front")
    for place, row in _rows(result):
        check_form(row.get("own"), (float, None), f"{place}.own")
        if any(value is not None and not 0 <= value < 1e30 for value in (row.get(name) for name in Costs)):
            raise FileError(f"{place}: found a cost below 0 or beyond any network's")
        if not (0 <= row["top1"] <= 1 and 0 <= row["top5"] <= 1):
            raise FileError(f"{place}: found an accuracy of {row['top1']} and {row['top5']}, expected 0 to 1")
    for number, row in enumerate(result["evaluations"]):
        try:
            Architecture.from_dict(row["architecture"])
        except ValueError as error:
            raise FileError(f"evaluations[{number}]: {error}") from error
    for number, budget in enumerate(result["budgets"]):
        for name, limit in budget["limits"].items():
            check_form(limit, (float, None), f"budgets[{number}].limits.{name}")


def _references(result: dict[str, Any]) -> list[tuple[str, int]]:
    """Where a result refers to an evaluation, and to which."""
    return [
        *((f"front[{n}]", number) for n, number in enumerate(result["front"])),
        *((f"surface[{n}]", number) for n, number in enumerate(result.get("surface", []))),
        *((f"budgets[{n}].winner", budget["winner"]) for n, budget in enumerate(result["budgets"])),
        *((f"final[{n}].number", row["number"]) for n, row in enumerate(result["final"]) if row["number"] is not None),
    ]


def _rows(result: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(f"{part}[{n}]", row) for part in ("evaluations", "final") for n, row in enumerate(result[part])]
