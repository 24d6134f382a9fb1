"""Plot a run's curves from its metrics.jsonl.

    python docs/plot_curves.py exp/cifar10 docs/cifar10.png
"""

import json
import pathlib
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

COLOURS = {"biggest": "#1d4ed8", "random1": "#60a5fa", "random2": "#93c5fd", "smallest": "#f97316"}


def smooth(values: list[float], weight: float = 0.8) -> list[float]:
    """Exponential moving average."""
    result = [values[0]]
    for value in values[1:]:
        result.append(weight * result[-1] + (1 - weight) * value)
    return result


def main(workdir: str, out: str) -> None:
    rows = [json.loads(line) for line in (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss/biggest" in row]
    scores = [row for row in rows if any(name.endswith("_top1/max") for name in row)]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for name, colour in COLOURS.items():
        trained = [row for row in steps if f"loss/{name}" in row]  # students may begin later
        if trained:
            values = smooth([row[f"loss/{name}"] for row in trained])
            left.plot([row["epoch"] for row in trained], values, color=colour, label=name, lw=1.4)
    left.set(xlabel="epoch", ylabel="loss (smoothed)", title="sandwich members")
    steps_per_epoch = steps[-1]["step"] / steps[-1]["epoch"]
    split = next(name.split("_")[0] for name in scores[0] if name.endswith("_top1/max"))
    for child, colour in (("max", COLOURS["biggest"]), ("min", COLOURS["smallest"])):
        values = [100 * row[f"{split}_top1/{child}"] for row in scores]
        epochs = [row["step"] / steps_per_epoch for row in scores]
        right.plot(epochs, values, "o-", color=colour, label=child.upper(), ms=4)
        above = 6 if child == "max" else -14
        text = f"{values[-1]:.1f}"
        right.annotate(text, (epochs[-1], values[-1]), (0, above), textcoords="offset points", ha="center")
    right.set(xlabel="epoch", ylabel="top-1 %", title=f"calibrated children, {split} images")
    right.margins(y=0.12)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
