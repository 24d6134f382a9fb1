"""The comparison of runs: the fronts of several searches on one plot, and their accuracies at the same costs."""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from bignas_jax.errors import ReportError
from bignas_jax.files import write_text
from bignas_jax.search.report import static
from bignas_jax.search.report.plot import LOG_FROM, unit_of

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 1000, 460, 64, 20, 16, 48
MOST = 18  # runs: the looks of curves that differ
LEVELS = 6  # costs at which the table compares
_WORDS = {"macs": "multiply-adds", "params": "parameters", "latency_ms": "latency", "own": "own cost"}


def write(results: Mapping[str, Mapping[str, Any]], path: pathlib.Path, cost: str = "") -> pathlib.Path:
    """Writes the page of these results, whole or not at all, and returns its path. As `page`."""
    content = page(results, cost)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, content)
    return path


def page(results: Mapping[str, Mapping[str, Any]], cost: str = "") -> str:
    """The HTML of a comparison. It holds no script.

    Args:
      results: the contents of result.json by the run's name, as `page.read` gives them.
      cost: the kind of cost of the axis; '' takes that of the first run.
    Raises:
      ReportError: there are fewer than two results or too many, or one has no such cost.
    """
    if not 2 <= len(results) <= MOST:
        raise ReportError(f"found {len(results)} runs to compare, expected 2 to {MOST}")
    cost = cost or next(iter(results.values()))["run"]["cost"]
    curves = {name: front(result, cost, name) for name, result in results.items()}
    sections = [
        static.section("fronts", f"Accuracy against {_WORDS[cost]}", _differences(results), _plot(curves, cost),
                       _legend(curves)),  # fmt: skip
        static.section("levels", "At the same cost", "The best held-out top-1 of each run that costs no more.",
                       _levels(curves, cost)),  # fmt: skip
        static.section("runs", "The searches", "", _runs(results)),
        static.section("winners", "Winners on the validation split",
                       "Nothing was chosen on these images: they are the figures to quote.",
                       _winners(results, cost)),  # fmt: skip
    ]
    return static.page(f"Comparison of {len(results)} runs", _headline(curves, cost), sections)


def front(result: Mapping[str, Any], cost: str, name: str) -> list[tuple[float, float]]:
    """(cost, held-out top-1) of the complete evaluations that no other beats in both, by rising cost.

    Raises:
      ReportError: the search has no such cost, or no complete evaluation.
    """
    rows = [row for row in result["evaluations"] if row["complete"] and row.get(cost) is not None]
    if not rows:
        raise ReportError(f"{name}: found no evaluation with {cost}, expected a search that has this cost: give --cost")
    found: list[tuple[float, float]] = []
    for row in sorted(rows, key=lambda row: (row[cost], -row["top1"])):
        if not found or row["top1"] > found[-1][1]:
            found.append((row[cost], row["top1"]))
    return found


def at_most(curve: Sequence[tuple[float, float]], limit: float) -> float | None:
    """The best top-1 on a front that costs no more than this; None if nothing does."""
    return max((top1 for cost, top1 in curve if cost <= limit), default=None)


def _levels_of(curves: Mapping[str, Sequence[tuple[float, float]]]) -> list[float]:
    """Costs that all runs can compare at, spread as on the axis: from the dearest of the cheapest to the dearest."""
    low = max(curve[0][0] for curve in curves.values())
    high = max(curve[-1][0] for curve in curves.values())
    if not high > low:
        return [low]
    shares = [n / (LEVELS - 1) for n in range(LEVELS)]
    if _logarithmic(low, high):
        return [*(low * (high / low) ** share for share in shares[:-1]), high]
    return [low + share * (high - low) for share in shares]


def _logarithmic(low: float, high: float) -> bool:
    return low > 0 and high / low > LOG_FROM


def _headline(curves: Mapping[str, Sequence[tuple[float, float]]], cost: str) -> str:
    ahead = dict.fromkeys(curves, 0)
    levels = _levels_of(curves)
    for level in levels:
        found = {name: at_most(curve, level) for name, curve in curves.items()}
        best = max(found.values())
        first = [name for name, top1 in found.items() if top1 == best]
        if len(first) == 1:
            ahead[first[0]] += 1
    name = max(ahead, key=ahead.get)
    if not ahead[name]:
        return f"No run is ahead of all others at any of the {len(levels)} costs ({_WORDS[cost]}) that were compared."
    return f"{name} is ahead of all others at {ahead[name]} of the {len(levels)} costs ({_WORDS[cost]}) compared."


def _differences(results: Mapping[str, Mapping[str, Any]]) -> str:
    """What makes the accuracies of the runs those of other tasks, in words."""
    def of(result: Mapping[str, Any]) -> dict[str, Any]:
        config = result["config"]
        data, model = config.get("data", {}), config.get("model", {})
        return {"images held out": result["run"]["images"]["holdout"], "classes": model.get("num_classes"),
                "source": data.get("source"), "training images": data.get("train_split")}  # fmt: skip

    values = [of(result) for result in results.values()]
    other = [name for name in values[0] if any(v[name] != values[0][name] for v in values)]
    words = "Each step is the front of one search: held-out top-1 that no cheaper network of it reaches."
    if other:
        words += f" The runs differ in {', '.join(other)}: their accuracies are not of the same task."
    return words


def _plot(curves: Mapping[str, Sequence[tuple[float, float]]], cost: str) -> str:
    costs = [x for curve in curves.values() for x, _ in curve]
    tops = [100 * y for curve in curves.values() for _, y in curve]
    scale, unit = unit_of(cost, costs)
    low, high = min(costs), max(costs)
    logarithmic = _logarithmic(low, high)
    x_of = _placed(low, high, LEFT, WIDTH - RIGHT, logarithmic)
    floor, ceiling = _padded(min(tops), max(tops))
    y_of = _placed(floor, ceiling, HEIGHT - BOTTOM, TOP)
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{static.text("Fronts of the runs")}">']
    for value in _ticks(floor, ceiling):
        y = y_of(value)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
                     f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}%</text>')  # fmt: skip
    for value in _ticks(low / scale, high / scale, logarithmic):
        x = x_of(value * scale)
        parts.append(f'<path class="grid" d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}"/>'
                     f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{value:g}</text>')  # fmt: skip
    title = f"{_WORDS[cost]} ({unit})".removesuffix(" ()")
    parts.append(f'<text x="{(LEFT + WIDTH) / 2:.0f}" y="{HEIGHT - 8}" text-anchor="middle">{title}</text>')
    for number, (name, curve) in enumerate(curves.items()):
        points = [(x_of(x), y_of(100 * y)) for x, y in curve]
        path = f"M{points[0][0]:.1f} {points[0][1]:.1f}" + "".join(f"H{x:.1f}V{y:.1f}" for x, y in points[1:])
        parts.append(f'<path class="curve" style="{static.stroke(number)}" d="{path}H{WIDTH - RIGHT}">'
                     f"<title>{static.text(name)}</title></path>")  # fmt: skip
        parts += [
            f'<circle class="curve" style="{static.stroke(number)}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"><title>'
            f"{static.text(name)}: {100 * top1:.2f}% at {value / scale:,.4g} {unit}</title></circle>"
            for (x, y), (value, top1) in zip(points, curve, strict=True)
        ]
    return "".join([*parts, "</svg>"])


def _placed(low: float, high: float, start: float, end: float, logarithmic: bool = False):
    """A function from a value to its place between `start` and `end`, in pixels."""
    form = math.log if logarithmic else float
    first, span = form(low), form(high) - form(low)
    return lambda value: start + (end - start) * ((form(value) - first) / span if span else 0.5)


def _padded(low: float, high: float) -> tuple[float, float]:
    margin = max(0.05 * (high - low), 0.1)
    return low - margin, min(high + margin, 100.0) if high < 100 else high + margin


def _ticks(low: float, high: float, logarithmic: bool = False) -> list[float]:
    """Round values from low to high, about six."""
    if not high > low:
        return [low]
    if logarithmic:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        found = [lead * 10.0**power for power in powers for lead in (1, 2, 5)]
    else:
        rough = (high - low) / 6
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(lead * power for lead in (1, 2, 2.5, 5, 10) if lead * power >= rough)
        found = [round(n * step, 10) for n in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return [value for value in found if low <= value <= high]


def _legend(curves: Mapping[str, Any]) -> str:
    items = [
        f'<li><svg width="34" height="12" viewBox="0 0 34 12" aria-hidden="true"><path class="curve" '
        f'style="{static.stroke(number)}" d="M1 6H33"/></svg>{static.text(name)}</li>'
        for number, name in enumerate(curves)
    ]
    return f'<ul class="legend">{"".join(items)}</ul>'


def _levels(curves: Mapping[str, Sequence[tuple[float, float]]], cost: str) -> str:
    levels = _levels_of(curves)
    scale, unit = unit_of(cost, levels)
    head = ["run", *(f"{level / scale:,.4g} {unit}".strip() for level in levels)]
    return static.table(
        head, [[name, *(_percent(at_most(curve, level)) for level in levels)] for name, curve in curves.items()]
    )


def _runs(results: Mapping[str, Mapping[str, Any]]) -> str:
    head = ["run", "strategy", "step", "architectures scored", "of them completely", "seconds", "held-out images"]
    rows = []
    for name, result in results.items():
        run, scored = result["run"], result["evaluations"]
        rows.append([name, run["strategy"], f"{run['step']:,}", f"{len(scored):,}",
                     f"{sum(row['complete'] for row in scored):,}", f"{run['seconds']:,.0f}",
                     f"{run['images']['holdout']:,}"])  # fmt: skip
    return static.table(head, rows, left=2)


def _winners(results: Mapping[str, Mapping[str, Any]], cost: str) -> str:
    rows = []
    for name, result in results.items():
        for row in result["final"]:
            scale, unit = unit_of(cost, [row.get(cost) or 0])
            value = "-" if row.get(cost) is None else f"{row[cost] / scale:,.4g} {unit}".strip()
            rows.append([name, row["name"], value, _percent(row["holdout_top1"]), _percent(row["top1"])])
    return static.table(["run", "network", _WORDS[cost], "held-out top-1", "validation top-1"], rows, left=2)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}%"
