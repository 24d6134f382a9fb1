"""Makes search results that look like real ones, at any size, for the report's tests and for looking at the page.

    PYTHONPATH=. python tests/report_cases.py PAGE bignas 300    # or digits, attentive_nas

Costs are counted, not made up; accuracies follow a smooth law of cost and resolution with the noise that a finite
number of held-out images has.
"""

import importlib
import json
import pathlib
import sys
from typing import Any

import numpy as np

from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.cost import count
from bignas_jax.spaces.mobilenet import SearchSpace

HOSTILE = "</script><script>window.hacked=1</script><!--<img src=x onerror=window.hacked=2>\u2028&amp; $x$ @@DATA@@"

# name of the config: classes, held-out images, top-1 of the biggest, log-cost slope, budgets in multiply-adds.
SCALES = {
    "digits": (10, 200, 0.992, 0.012, (0.3e6, 0.7e6, 1.0e6)),
    "attentive_nas": (1000, 10000, 0.807, 0.019, (300e6, 500e6)),
    "bignas": (1000, 10000, 0.797, 0.026, (300e6, 600e6, 1000e6)),
}
IMAGES_VAL = 4000


def _quality(space: SearchSpace, arch: Architecture, macs: int, name: str) -> float:
    """The expected top-1: it grows with the logarithm of the cost, and drops for lopsided choices."""
    classes, _, best, slope, _ = SCALES[name]
    biggest = count(space, space.biggest, classes).macs
    depth = np.mean([d / s.depth[-1] for d, s in zip(arch.depth, space.stages, strict=True)])
    side = arch.resolution / space.resolution[-1]
    return best - slope * np.log2(biggest / macs) - 1.2 * slope * abs(depth - side) ** 1.5


def _evaluation(space, arch, name, number, rng, phase, latency) -> dict[str, Any]:
    classes, images, *_ = SCALES[name]
    cost = count(space, arch, classes)
    expected = min(_quality(space, arch, cost.macs, name), 0.9999)
    complete = number < 2 or bool(rng.random() < 0.7)
    seen = images if complete else images // 4
    top1 = rng.binomial(seen, expected) / seen
    return {
        "number": number, "architecture": arch.to_dict(), "macs": cost.macs, "params": cost.params,
        "latency_ms": round(0.8 + cost.macs / 4e7 * rng.uniform(0.9, 1.1), 3) if latency else None,
        "top1": top1, "top5": min(1.0, top1 + 0.8 * (1 - top1)), "loss": round(float(-np.log(top1)) * 1.6 + 0.01, 4),
        "images": seen, "complete": complete, "phase": phase,
    }


def _proposals(space: SearchSpace, count_: int, rng: np.random.Generator):
    """Distinct architectures with their phases: the extremes and random ones, then mutants of those."""
    found = {space.biggest: "grid", space.smallest: "grid"}
    while len(found) < count_:
        share = len(found) / count_
        stage = space.stages[len(found) // 12 % len(space.stages)].name
        phase = "grid" if share < 0.4 else f"part {stage}, round {1 if share < 0.75 else 2}"
        parent = list(found)[rng.integers(len(found))]
        found.setdefault(space.sample(rng) if phase == "grid" else space.mutate(parent, rng, 0.3), phase)
    return list(found.items())[:count_]


def front_of(evaluations: list[dict], cost: str) -> list[int]:
    """The complete evaluations that no other beats in cost and top-1, by rising cost."""
    found, best = [], -1.0
    for row in sorted((e for e in evaluations if e["complete"]), key=lambda e: (e[cost], -e["top1"])):
        if row["top1"] > best:
            found.append(row["number"])
            best = row["top1"]
    return found


def _budgets(evaluations: list[dict], limits: tuple[float, ...]) -> list[dict]:
    rows = []
    for limit in limits:
        inside = [e for e in evaluations if e["complete"] and e["macs"] <= limit]
        if inside:
            name = f"macs-{limit / 1e6:.2f}M"
            winner = max(inside, key=lambda e: e["top1"])["number"]
            rows.append({"name": name, "winner": winner, "file": f"children/{name}/architecture.json",
                         "limits": {"macs": limit, "params": None, "latency_ms": None, "resolution": None}})
    return rows


def _final(space, evaluations: list[dict], budgets: list[dict], name: str, rng) -> list[dict]:
    rows = []
    for label, number in [*((b["name"], b["winner"]) for b in budgets), ("MAX", 0), ("MIN", 1)]:
        row = evaluations[number]
        arch = Architecture.from_dict(row["architecture"])
        top1 = rng.binomial(IMAGES_VAL, min(_quality(space, arch, row["macs"], name), 0.9999)) / IMAGES_VAL
        rows.append({"name": label, "number": number, **{k: row[k] for k in ("macs", "params", "latency_ms")},
                     "holdout_top1": row["top1"], "top1": top1, "top5": min(1.0, top1 + 0.8 * (1 - top1)),
                     "images": IMAGES_VAL})
    return rows


def make(name: str = "digits", evaluations: int = 120, *, seed: int = 0, workdir: str = "", latency: bool = True,
         predictor: bool = True, budgets: bool = True) -> dict[str, Any]:
    """A result as `bignas_jax.search` saves it; `name` is a key of SCALES, and of a config."""
    config = importlib.import_module(f"configs.{name}").get_config()
    space = SearchSpace.from_config(config.space)
    rng = np.random.default_rng(seed)
    rows = [_evaluation(space, arch, name, number, rng, phase, latency)
            for number, (arch, phase) in enumerate(_proposals(space, evaluations, rng))]
    # A partial score takes a quarter of the time.
    for row, seconds in zip(rows, np.cumsum([1.7 if row["complete"] else 0.4 for row in rows]), strict=True):
        row["seconds"] = round(float(seconds), 1)
    limits = _budgets(rows, SCALES[name][-1]) if budgets else []
    seen = [n for n in range(48, evaluations, 48)] if predictor else []
    networks = [{"macs": e["macs"], "estimated_ms": e["latency_ms"],
                 "measured_ms": round(e["latency_ms"] * rng.uniform(0.9, 1.12), 3)} for e in rows[:3] if latency]
    result = {
        "run": {"workdir": workdir or f"exp/{name}", "step": 570, "strategy": "coarse_to_fine", "cost": "macs",
                "seed": seed, "seconds": rows[-1]["seconds"], "device": "cpu x 1",
                "images": {"calibration": 1024, "first_part": SCALES[name][1] // 4, "holdout": SCALES[name][1],
                           "val": IMAGES_VAL}},
        "config": config.to_dict(), "space": space.to_dict(), "evaluations": rows, "budgets": limits,
        "front": front_of(rows, "macs"), "final": _final(space, rows, limits, name, rng),
        "predictor": [{"evaluations": n, "tau": round(0.75 - 20 / n, 3), "used": 0.75 - 20 / n > 0.4} for n in seen],
        "latency": {"batch_size": 1, "device": "cpu", "blocks": 31, "error": 0.06, "networks": networks}
        if latency else None,
    }
    return json.loads(json.dumps(result))


if __name__ == "__main__":
    from bignas_jax.search.report import page as report

    target = pathlib.Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    print(*report.write(make(sys.argv[2], int(sys.argv[3])), target), sep="\n")
