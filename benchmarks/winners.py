"""A search's winners beside random architectures of the same cost, on the validation split.

    python benchmarks/winners.py --workdir exp/cifar10 [--count 20] [--quick]

For every budget of the run's search, `count` architectures are drawn uniformly from those whose cost is within 3% of
the winner's. They are calibrated like the winner, and scored on the validation images, which neither the training nor
the search has seen. All architectures of a resolution run in the same executable. The mean and the standard deviation
of their top-1 are printed beside the winner's.
"""

import argparse
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from bignas_jax.programs import memory

memory.keep_freed_memory()

import numpy as np  # noqa: E402

from bignas_jax.config.options import Options  # noqa: E402
from bignas_jax.programs.buckets import shared  # noqa: E402
from bignas_jax.programs.kept import use_compilation_cache  # noqa: E402
from bignas_jax.search import run  # noqa: E402
from bignas_jax.search.problem import make_problem  # noqa: E402
from bignas_jax.spaces.architecture import Architecture  # noqa: E402
from bignas_jax.text import aligned  # noqa: E402

NEAR = 0.03  # a random architecture's cost may differ from the winner's by this fraction
TRIES = 200_000


def of_like_cost(problem, budget, winner: Architecture, count: int, rng: np.random.Generator) -> list[Architecture]:
    """Distinct architectures within the budget, drawn uniformly, whose cost is near the winner's."""
    target, found = problem.cost_of(winner), {}
    for _ in range(TRIES):
        arch = problem.space.sample(rng)
        near = abs(problem.cost_of(arch) / target - 1) <= NEAR
        if near and arch != winner and problem.fits(arch, budget):
            found[arch] = None
            if len(found) == count:
                break
    return list(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", default="exp/digits", help="of a run that was searched")
    parser.add_argument("--count", type=int, default=20, help="random architectures for each winner")
    parser.add_argument("--quick", action="store_true", help="three random architectures for each winner")
    arguments = parser.parse_args()
    workdir, count = pathlib.Path(arguments.workdir), 3 if arguments.quick else arguments.count
    result = json.loads((workdir / "search" / "result.json").read_text())
    use_compilation_cache()
    options = Options.of(result["config"])
    if result["latency"] is not None:
        parser.error("the search had to do with latencies; this compares costs that are counted")
    session, weights, step = run.open_run(options, workdir, str(result["run"]["step"]))
    problem = make_problem(session)
    rng = np.random.default_rng(0)
    numbered = {row["number"]: Architecture.from_dict(row["architecture"]) for row in result["evaluations"]}
    winners = {budget["name"]: numbered[budget["winner"]] for budget in result["budgets"]}
    rivals = {b.name: of_like_cost(problem, b, winners[b.name], count, rng) for b in problem.budgets}
    archs = dict.fromkeys([*winners.values(), *(arch for some in rivals.values() for arch in some)])
    placement = {arch: shared(session.space, arch.resolution) for arch in archs}
    session.compile_evaluation(dict.fromkeys(placement.values()))
    top1 = {arch: score.top1 for arch, score in session.evaluate(weights, placement, "val").items()}
    body = []
    for name, winner in winners.items():
        values = 100 * np.array([top1[arch] for arch in rivals[name]])
        summary = (values.mean(), values.std(ddof=1), values.max()) if len(values) > 1 else [np.nan] * 3
        ours = 100 * top1[winner]
        cells = [f"{value:.2f}" for value in (ours, *summary)]
        cost = f"{problem.cost_of(winner) / 1e6:,.2f}"
        body.append((name, cost, *cells, f"{np.sum(ours > values)} of {len(values)}"))
    print(f"step {step} of {workdir}, top-1 % on the validation images; the random ones cost as much within {NEAR:.0%}")
    head = ("budget", f"{problem.cost} (M)", "winner", "random mean", "deviation", "random best", "beaten")
    print(aligned(head, body))


if __name__ == "__main__":
    main()
