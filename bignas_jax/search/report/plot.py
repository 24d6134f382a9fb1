"""The cloud of a search and its front as a PNG, for papers and READMEs."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from bignas_jax.files import write_with

INK, MUTED, LINE = "#1b1e22", "#59616b", "#dfe2e6"
# Lightness rises along the ramp, so that the order is visible with any colour vision. report.html has the same ends.
_RAMP = LinearSegmentedColormap.from_list("resolution", ["#35208a", "#b8327a", "#d9601a"])
_TITLES = {"macs": "multiply-adds", "params": "parameters", "latency_ms": "latency", "own": "own cost"}
# Costs that span more than this factor are drawn on a logarithmic axis.
LOG_FROM = 5.0


def colours(resolutions: Sequence[int]) -> dict[int, str]:
    """A colour for each resolution, '#rrggbb', from the smallest (dark) to the biggest."""
    ordered = sorted(set(resolutions))
    return {side: to_hex(_RAMP(n / max(len(ordered) - 1, 1))) for n, side in enumerate(ordered)}


def unit_of(cost: str, values: Sequence[float]) -> tuple[float, str]:
    """The number to divide a cost by, and its unit: thousands, millions, or milliseconds."""
    if cost == "latency_ms":
        return 1.0, "ms"
    if cost == "own":
        return 1.0, ""
    return (1e3, "K") if max(values, default=0) < 1e6 and cost == "params" else (1e6, "M")


def write(result: Mapping[str, Any], path: pathlib.Path) -> None:
    """Writes the plot of a search's result (see `report.write`) to `path`, 1600 x 1000 pixels, in one go."""
    figure = Figure(figsize=(8, 5), dpi=200, layout="constrained", facecolor="white")
    _draw(figure.add_subplot(), result)
    write_with(path, lambda temporary: FigureCanvasAgg(figure).print_png(str(temporary)))


def _draw(axes: Axes, result: Mapping[str, Any]) -> None:
    cost = result["run"]["cost"]
    rows = [row for row in result["evaluations"] if row[cost] is not None]
    scale, unit = unit_of(cost, [row[cost] for row in rows])
    axes.set_xlabel(f"{_TITLES[cost]} ({unit})".removesuffix(" ()"))
    axes.set_ylabel(f"top-1 on {result['run']['images']['holdout']:,} held-out images (%)")
    _cloud(axes, rows, cost, scale)
    _front(axes, result, cost, scale)
    _budgets(axes, result, cost, scale)
    _extremes(axes, result, cost, scale)
    _style(axes, [row[cost] / scale for row in rows])


def _cloud(axes: Axes, rows: Sequence[Mapping[str, Any]], cost: str, scale: float) -> None:
    area = 9 if len(rows) > 1500 else 22
    partial = {"s": area / 2, "facecolors": "none", "linewidths": 0.6}
    complete = {"s": area, "edgecolors": "white", "linewidths": 0.3, "alpha": 0.85, "zorder": 3}
    for side, colour in colours([row["architecture"]["resolution"] for row in rows]).items():
        for kind, style in ((False, {**partial, "edgecolors": colour, "alpha": 0.5, "zorder": 2}),
                            (True, {**complete, "facecolors": colour, "label": f"{side} px"})):
            some = [row for row in rows if row["architecture"]["resolution"] == side and row["complete"] == kind]
            axes.scatter([row[cost] / scale for row in some], [100 * row["top1"] for row in some], **style)
    if not all(row["complete"] for row in rows):
        axes.scatter([], [], **partial, edgecolors=MUTED, label="partial, an estimate")


def _front(axes: Axes, result: Mapping[str, Any], cost: str, scale: float) -> None:
    by_number = {row["number"]: row for row in result["evaluations"]}
    front = [by_number[number] for number in result["front"]]
    if front:
        last = max(row[cost] for row in by_number.values() if row[cost] is not None)
        xs = [row[cost] / scale for row in front] + [last / scale]
        ys = [100 * row["top1"] for row in front] + [100 * front[-1]["top1"]]
        axes.step(xs, ys, where="post", color=INK, linewidth=1.2, zorder=4, label="front")
    winners = [by_number[budget["winner"]] for budget in result["budgets"]]
    winners = [row for row in winners if row[cost] is not None]
    if winners:
        axes.scatter([row[cost] / scale for row in winners], [100 * row["top1"] for row in winners], marker="D", s=42,
                     color=INK, edgecolors="white", linewidths=0.8, zorder=6, label="winner of a budget")


def _budgets(axes: Axes, result: Mapping[str, Any], cost: str, scale: float) -> None:
    for budget in result["budgets"]:
        limit = budget["limits"].get(cost)
        if limit is not None:
            axes.axvline(limit / scale, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
            axes.annotate(_plain(budget["name"]), (limit / scale, 1), (-2, 2), xycoords=axes.get_xaxis_transform(),
                          textcoords="offset points", rotation=20, rotation_mode="anchor", fontsize=7.5, color=MUTED)


def _extremes(axes: Axes, result: Mapping[str, Any], cost: str, scale: float) -> None:
    halo = withStroke(linewidth=3, foreground="white")
    for row in result["final"]:
        if row["name"] in ("MAX", "MIN") and row[cost] is not None and row["holdout_top1"] is not None:
            point, offset = (row[cost] / scale, 100 * row["holdout_top1"]), (0, -13)
            axes.scatter(*point, marker="s", s=46, facecolors="none", edgecolors=INK, linewidths=1.2, zorder=5)
            axes.annotate(row["name"], point, offset, textcoords="offset points", ha="center", fontsize=8,
                          fontweight="bold", color=INK, zorder=7, path_effects=[halo])


def _style(axes: Axes, costs: Sequence[float]) -> None:
    if costs and min(costs) > 0 and max(costs) / min(costs) > LOG_FROM:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
    axes.grid(color=LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(colors=MUTED, labelsize=9)
    axes.margins(0.05, 0.08)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="lower right", fontsize=8, frameon=True, framealpha=0.9, edgecolor="none", labelcolor=INK)


def _plain(text: str, most: int = 28) -> str:
    """At most `most` characters, escaped for matplotlib: a dollar sign would begin a formula."""
    short = text if len(text) <= most else text[:most - 1] + "\u2026"
    return short.replace("$", r"\$")
