"""What exported files compute, beside what the supernet computes: the comparison, its verdict and its table."""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from bignas_jax.errors import ExportError
from bignas_jax.interop.exports.formats import ROUNDED
from bignas_jax.interop.exports.run_back import Outputs

LIMIT = 1e-3  # greatest difference of a logit, as a fraction of the largest logit


def compare(found: Outputs, expected: Outputs) -> dict[str, Any]:
    """The greatest difference of a logit, as a fraction of the largest |logit|, and how often top-1 agrees.

    Of feature maps: for each map the same difference, and the greatest of them.
    """
    if isinstance(expected, Mapping):
        if {name: a.shape for name, a in found.items()} != {name: a.shape for name, a in expected.items()}:
            return {"difference": float("inf"), "maps": {}}
        maps = {name: compare(found[name], value)["difference"] for name, value in expected.items()}
        return {"difference": float(np.max(list(maps.values()))), "maps": maps}
    largest = max(float(np.abs(expected).max()), np.finfo(np.float32).tiny)
    return {
        "difference": float(np.abs(found.astype(np.float64) - expected).max() / largest),
        "agreement": float(np.mean(found.argmax(1) == expected.argmax(1))),
    }


def accuracy(file: Mapping[str, Any], logits: Outputs, labels: np.ndarray) -> dict[str, float]:
    """The top-1 of a file whose logits are rounded; nothing of the others, whose logits are the supernet's."""
    return {"top1": float(np.mean(logits.argmax(1) == labels))} if file["format"] in ROUNDED else {}


def check(rows: Iterable[Mapping[str, Any]]) -> None:
    """Refuses children whose files compute other logits than the supernet. Those of integers need only be numbers.

    Raises:
      ExportError: a difference is beyond LIMIT, or not a number.
    """
    wrong = [
        f"{row['folder']}/{file['file']} ({file['difference']:.1e})"
        for row, file in itertools.chain.from_iterable(((row, file) for file in row["files"]) for row in rows)
        if not file["difference"] <= (np.finfo(np.float32).max if file.get("format") in ROUNDED else LIMIT)
    ]
    if wrong:
        raise ExportError(
            f"logits differ from the supernet's by more than {LIMIT:g} of the largest logit: {', '.join(wrong)}; "
            "do not use these files"
        )


def table(row: Mapping[str, Any]) -> str:
    """A child's files with sizes, differences and agreement."""
    macs, params = row["macs"] / 1e6, row["params"] / 1e6
    lines = [
        f"{row['name']}: {macs:,.2f} M multiply-adds, {params:,.2f} M parameters, step {row['step']}; "
        f"on {row['images']} {row['split']} images, top-1 {row['top1']:.2%}",
        f"{'format':<12}{'file':<20}{'MB':>9}{'nodes':>7}{'difference':>12}{'same top-1':>12}",
    ]
    for file in row["files"]:
        nodes = sum(file["nodes"].values()) if "nodes" in file else ""
        lines.append(
            f"{file['format']:<12}{file['file']:<20}{file['bytes'] / 1e6:>9.2f}{nodes:>7}"
            f"{file['difference']:>12.1e}" + (f"{file['agreement']:>12.2%}" if "agreement" in file else "")
        )
        if "top1" in file:
            lines.append(f"  top-1 {file['top1']:.2%} in 8 bits, {row['top1']:.2%} in float32")
            lines += _growth(row, file)
        lines += [f"  {name:<66}{difference:>12.1e}".rstrip() for name, difference in file.get("maps", {}).items()]
    return "\n".join(lines)


def _growth(row: Mapping[str, Any], file: Mapping[str, Any]) -> list[str]:
    """A line if a file in 8 bits is no smaller than the one in float32, or than its weights where that is not there."""
    exact = next((other["bytes"] for other in row["files"] if other["format"] == "onnx"), 4 * row["params"])
    if file["bytes"] < exact:
        return []
    return [
        f"  no smaller than in float32 ({file['bytes']:,} bytes, {exact:,}): the nodes that round, and the scale of "
        "each channel, take more than so few weights save"
    ]
