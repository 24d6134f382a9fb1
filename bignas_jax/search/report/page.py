"""The report of a search: one HTML page that needs nothing else, and a PNG of the front.

    python -m bignas_jax report exp/digits     # writes both again from exp/digits/search/result.json
"""

import decimal
import html
import json
import math
import pathlib
import re
import shlex
from collections.abc import Mapping
from typing import Any

from bignas_jax.errors import FileError, ReportError
from bignas_jax.files import read_json, write_text
from bignas_jax.search.report import form, plot

TEMPLATE = pathlib.Path(__file__).with_name("report.html")
KEYS = ("run", "config", "space", "evaluations", "budgets", "front", "final", "predictor", "latency")
# A network that keeps this share of the biggest one's accuracy is called as good in the page's first sentence.
AS_GOOD = 0.99
_WORDS = {"macs": "multiply-adds", "params": "parameters", "latency_ms": "latency", "own": "own cost"}


def write(result: Mapping[str, Any], folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes report.html and front.png into `folder`, each in one go: a reader never finds half a file.

    Args:
      result: the content of result.json: run, config, space, evaluations, budgets, front, final, predictor and latency.
        Accuracies are 0..1, latencies in ms, times in seconds. Without run.workdir, the run's folder is the parent of
        `folder`.
      folder: where both files are written.
    Returns:
      The two paths.
    Raises:
      ReportError: a part of the result is missing.
    """
    folder = pathlib.Path(folder)
    result = {**result, "run": {"workdir": str(folder.parent), **result.get("run", {})}}
    path = folder / "report.html"
    write_text(path, page(result))
    plot.write(result, folder / "front.png")
    return [path, folder / "front.png"]


def page(result: Mapping[str, Any]) -> str:
    """The HTML of a result.

    Raises:
      ReportError: a part of the result is missing.
    """
    missing = [key for key in KEYS if key not in result]
    if missing:
        raise ReportError(f"found no {', '.join(missing)}, expected the result of a search; run the search again")
    parts = {
        "TITLE": html.escape(f"Architecture search: {result['run']['workdir']}"),
        "HEADLINE": html.escape(headline(result)),
        "DATA": embedded({"result": result, "commands": commands(result), "chosen": _chosen_number(result)}),
    }
    # One pass over the template: text in the data that looks like a slot of the template is left alone.
    return re.sub(r"@@([A-Z]+)@@", lambda match: parts[match[1]], TEMPLATE.read_text(encoding="utf-8"))


def embedded(value: Any) -> str:
    """JSON that is safe inside a script element, whatever its strings hold. Not-a-number becomes null."""
    text = json.dumps(_finite(value), separators=(",", ":"), allow_nan=False)
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def commands(result: Mapping[str, Any]) -> dict[str, str]:
    """The shell commands that evaluate the winners again, by the budget's name."""
    workdir = pathlib.PurePath(result["run"]["workdir"])
    how = ["--quantized"] if result["run"].get("quantized") else []
    return {
        budget["name"]: shlex.join(
            ["python", "eval.py", "--workdir", str(workdir), "--arch", str(workdir / budget["file"]), *how])
        for budget in result["budgets"]
    }


def headline(result: Mapping[str, Any]) -> str:
    """The main result in a sentence.

    It compares the biggest network, on the validation split, with the cheapest winner that keeps AS_GOOD of its
    accuracy. If no winner does, it compares with the best winner. If neither is there, it names the best evaluation.
    """
    pair = _compared(result)
    if pair is None:
        return _best_evaluation(result)
    chosen, biggest = pair
    cost = result["run"]["cost"]
    share, kept = chosen[cost] / biggest[cost], chosen["top1"] / biggest["top1"]
    ending = "s" if cost == "latency_ms" else ""
    keeps = f"give{ending} at least its" if kept >= 1 else f"keep{ending} {_percent(kept, 1)} of its"
    return (f"{_percent(share, 1)} of the biggest network\u2019s {_WORDS[cost]} {keeps} top-1 accuracy:"
            f" {chosen['name']} has {_percent(chosen['top1'], 2)} on the validation split, the biggest"
            f" {_percent(biggest['top1'], 2)}.")


def _compared(result: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
    """The rows of `final` that the first sentence compares: a winner and MAX. None if they are missing."""
    cost = result["run"]["cost"]
    biggest = next((row for row in result["final"] if row["name"] == "MAX"), None)
    if biggest is None or not biggest.get(cost) or not biggest["top1"]:
        return None
    winners = [row for row in result["final"]
               if row["name"] not in ("MAX", "MIN") and row.get(cost) is not None and row[cost] < biggest[cost]]
    good = [row for row in winners if row["top1"] >= AS_GOOD * biggest["top1"]]
    if good:
        return min(good, key=lambda row: row[cost]), biggest
    return (max(winners, key=lambda row: row["top1"]), biggest) if winners else None


def _chosen_number(result: Mapping[str, Any]) -> int | None:
    pair = _compared(result)
    return pair[0]["number"] if pair else None


def _best_evaluation(result: Mapping[str, Any]) -> str:
    complete = [row for row in result["evaluations"] if row["complete"]]
    if not complete:
        return "No architecture has been scored on all held-out images yet."
    best = max(complete, key=lambda row: row["top1"])
    return (f"The best of {len(complete):,} architectures has {_percent(best['top1'], 2)} top-1 on the held-out"
            f" images, with {best['macs'] / 1e6:,.2f} M multiply-adds.")


def _percent(share: float, digits: int) -> str:
    """A percentage, rounded half up, because JavaScript rounds the same number so further down the page."""
    exact = decimal.Decimal(100 * share)
    return f"{exact.quantize(decimal.Decimal(1).scaleb(-digits), decimal.ROUND_HALF_UP)}%"


def read(workdir: str | pathlib.Path) -> dict[str, Any]:
    """The result of the search in a run's folder.

    Raises:
      ReportError: there is no result, or a search did not write its file.
    """
    path = pathlib.Path(workdir) / "search" / "result.json"
    try:
        result = read_json(path)
        form.check(result)
    except OSError as error:
        raise ReportError(
            f"{path}: {error.strerror}, expected the folder of a run that was searched: "
            "python -m bignas_jax search") from error
    except FileError as error:
        raise ReportError(f"{path}: {error}, expected what a search writes; run the search again") from error
    return result
