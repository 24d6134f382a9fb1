"""The output of a search: result.json, a file for each winner, the report, and a table for the terminal."""

import contextlib
import dataclasses
import math
import pathlib
from typing import Any

from bignas_jax.errors import FileError
from bignas_jax.files import locked, read_json, write_json
from bignas_jax.runs.session import Session
from bignas_jax.search.device_table import DeviceTable
from bignas_jax.search.held_out import Sizes
from bignas_jax.search.latency import LatencyTable
from bignas_jax.search.problem import COSTS, Problem
from bignas_jax.search.race import Race, Scored
from bignas_jax.search.report import page as report
from bignas_jax.search.screening import Screening
from bignas_jax.spaces.architecture import Architecture
from bignas_jax.text import aligned, tell


@dataclasses.dataclass(frozen=True)
class Found:
    """The findings of a search: its evaluations, the winners by budget, the predictor and the table of latencies."""

    race: Race
    winners: dict[str, Scored]
    screening: Screening
    latency: LatencyTable | DeviceTable | None


def result_of(
    session: Session,
    workdir: str,
    step: int,
    sizes: Sizes,
    problem: Problem,
    found: Found,
    final: dict[Architecture, dict[str, Any]],
) -> dict[str, Any]:
    """All findings of a search, as JSON values.

    Keys: run, config, space, evaluations, budgets (each with its winner's number), front (numbers of evaluations, over
    the first cost), surface (the same over all costs of the front), final (the validation figures), predictor, latency.
    """
    options, device = session.options, session.mesh.devices.flat[0]
    val = next(iter(final.values()))["images"]
    extremes = {session.space.biggest: "MAX", session.space.smallest: "MIN"}
    rows = [(name, e.arch) for name, e in found.winners.items()] + [(name, arch) for arch, name in extremes.items()]
    return {
        "run": {
            "workdir": workdir,
            "step": step,
            "strategy": options.search.strategy,
            "cost": problem.cost,
            "costs": list(problem.front_costs),
            "own_cost": problem.own_about,
            "seed": options.search.seed,
            "quantized": options.search.quantized,
            "seconds": round(found.race.seconds, 1),
            "screened_rounds": found.screening.rounds,
            "device": f"{device.device_kind} x {session.mesh.size}",
            "images": {
                "calibration": sizes.calibration,
                "first_part": sizes.first,
                "holdout": sizes.held_out,
                "val": val,
            },
        },
        "config": options.to_dict(),
        "space": session.space.to_dict(),
        "evaluations": [
            _row(problem, e) for e in sorted(found.race.evaluations.values(), key=lambda e: e.number)
        ],
        "budgets": [
            {
                "name": budget.name,
                "limits": {
                    **dict.fromkeys(COSTS),
                    **budget.limits(),
                    **{f"min_{kind}": least for kind, least in budget.floors().items()},
                    "resolution": options.search.max_resolution or None,
                },
                "winner": found.winners[budget.name].number,
                "file": f"children/{budget.name}/architecture.json",
            }
            for budget in problem.budgets
        ],
        "front": [e.number for e in found.race.front()],
        "surface": [e.number for e in found.race.surface()],
        "final": [_final_row(problem, found.race, name, arch, final[arch]) for name, arch in rows],
        "predictor": found.screening.history,
        "latency": None if found.latency is None else found.latency.check(),
    }


def _row(problem: Problem, e: Scored) -> dict[str, Any]:
    return {
        "number": e.number,
        "architecture": e.arch.to_dict(),
        **problem.costs(e.arch),
        "top1": e.top1,
        "top5": e.top5,
        "loss": e.loss if math.isfinite(e.loss) else None,
        "images": e.images,
        "complete": e.complete,
        "seconds": e.seconds,
        "phase": e.phase,
    }


def _final_row(
    problem: Problem, race: Race, name: str, arch: Architecture, found: dict[str, Any]
) -> dict[str, Any]:
    evaluation = race.evaluations.get(arch)
    return {
        "name": name,
        "number": None if evaluation is None else evaluation.number,
        "architecture": arch.to_dict(),
        **problem.costs(arch),
        "holdout_top1": None if evaluation is None else evaluation.top1,
        **{key: found[key] for key in ("measured_ms", "top1", "top5", "images")},
    }


def write(result: dict[str, Any], workdir: pathlib.Path) -> None:
    """Writes children/<budget>/architecture.json, search/result.json and the report.

    Raises:
      ConfigError: an export is at work in the children's folder.
    """
    numbered = {row["number"]: row["architecture"] for row in result["evaluations"]}
    with locked(workdir / "children", "search"):
        write_json(workdir / "search" / "result.json", result)
        for budget in result["budgets"]:
            path = workdir / budget["file"]
            _set_aside(path, numbered[budget["winner"]])
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, numbered[budget["winner"]])
    report.write(result, workdir / "search")


def _set_aside(path: pathlib.Path, winner: dict[str, Any]) -> None:
    """Renames the folder of an earlier winner if it also holds other files, such as exports of that winner."""
    folder = path.parent
    if not path.exists() or len(list(folder.iterdir())) == 1:
        return
    with contextlib.suppress(FileError):
        if read_json(path) == winner:
            return
    number = 1
    while (free := folder.with_name(f"{folder.name}-before-{number}")).exists():
        number += 1
    folder.replace(free)
    tell(f"{folder} held files of an earlier winner; they are now in {free}")


def table(result: dict[str, Any]) -> str:
    """The winners, MAX and MIN as text."""
    timed, own = result["latency"] is not None, result["run"]["own_cost"] is not None
    head = ["budget", "architecture", "MACs (M)", "params (M)", *(["estimated ms", "measured ms"] if timed else [])]
    head += ["own cost"] if own else []
    head += ["held-out top-1 %", "val top-1 %", "val top-5 %"]
    body = [
        (
            row["name"],
            compact(row["architecture"]),
            f"{row['macs'] / 1e6:,.2f}",
            f"{row['params'] / 1e6:,.3f}",
            *([_ms(row["latency_ms"]), _ms(row["measured_ms"])] if timed else []),
            *([f"{row['own']:.4g}"] if own else []),
            "-" if row["holdout_top1"] is None else f"{100 * row['holdout_top1']:.2f}",
            f"{100 * row['top1']:.2f}",
            f"{100 * row['top5']:.2f}",
        )
        for row in result["final"]
    ]
    return aligned(head, body, left=2)


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def notes(result: dict[str, Any]) -> list[str]:
    """Lines that say how the table's figures were found: one each for the search, the predictor and the latencies."""
    run = result["run"]
    complete = sum(row["complete"] for row in result["evaluations"])
    fewer = sorted({row["images"] for row in result["evaluations"] if not row["complete"]})
    others = f", the others on {' or '.join(f'{images:,}' for images in fewer)}" if fewer else ""
    lines = [
        f"{len(result['evaluations'])} architectures evaluated in {run['seconds']:.0f} s, {complete} of them on all "
        f"{run['images']['holdout']:,} held-out images{others}"
    ]
    if run.get("quantized"):
        lines.append(
            "accuracies, held-out and val, are those of weights and activations rounded to 8 bits: "
            "python -m bignas_jax export --format onnx-int8 writes such a network"
        )
    if len(run["costs"]) > 1:
        lines.append(
            f"{len(result['surface'])} of them are on the front of accuracy against {', '.join(run['costs'])} "
            "(surface in search/result.json)"
        )
    if result["predictor"]:
        last, least = result["predictor"][-1], result["config"]["search"]["predictor_min_tau"]
        lines.append(
            f"predictor: Kendall's tau {last['tau']:.2f} on evaluations it was not fitted to, at {last['evaluations']} "
            f"evaluations; it screened {run['screened_rounds']} rounds (those at tau {least:.2f} and more)"
        )
    elif result["config"]["search"]["predictor"]:
        lines.append("predictor: too few evaluations to fit one")
    if result["latency"]:
        table = result["latency"]
        error = "not known, the space is too small to hold networks back"
        if table["error"] is not None:
            error = f"{100 * table['error']:.1f}% on {len(table['networks'])} whole networks held back"
        lines.append(
            f"latency at batch {table['batch_size']} on {table['device']}, from {table['blocks']} measured blocks: "
            f"median error {error}"
        )
        if any(row["measured_ms"] is None for row in result["final"]):
            lines.append("the winners' latencies are estimates: export and measure them on the device, too")
    return lines


def compact(arch: dict[str, Any]) -> str:
    """An architecture in one word: resolution, widths, depths, kernel sizes, expansion ratios."""

    def listed(values) -> str:
        return "-".join("/".join(map(str, v)) if isinstance(v, list | tuple) else str(v) for v in values)

    kinds = (("w", "width"), ("d", "depth"), ("k", "kernel_size"), ("e", "expand_ratio"))
    return f"r{arch['resolution']} " + " ".join(letter + listed(arch[name]) for letter, name in kinds)
