"""Search a trained supernet for the best architectures under budgets, or for the front of accuracy against cost.

    python search.py
    python search.py --workdir exp/mine --config.search.max_macs=300e6
    python search.py "--config.search.max_macs=(200e6, 400e6)" --config.search.max_params=6e6
    python search.py --config.search.strategy=pareto --config.search.cost=macs,params
    python search.py --config.search.max_latency_ms=5 --config.search.latency_table=blocks/latency.csv
    python search.py --config.search.own_cost=mine:peak_kib --config.search.max_own=256

The config is the one that the run left in its folder; overrides come on top. Architectures are chosen on images held
out of the training set; the winners are scored on the validation split once, at the end. A search that was stopped
goes on where it was. Results: children/<budget>/architecture.json and search/report.html in the run's folder.
"""

import sys

from absl import flags as absl_flags

from bignas_jax.cli import flags
from bignas_jax.programs import memory
from bignas_jax.text import shown


def define(values: absl_flags.FlagValues) -> None:
    absl_flags.DEFINE_string("checkpoint", "newest", "newest, best, or a step", flag_values=values)


def main() -> int:
    memory.keep_freed_memory()  # before the parse: a config may name classes whose modules import JAX
    options, arguments = flags.parse(sys.argv, __doc__, define, of_run=True)
    # JAX and torch are imported once the command line is known to be good.
    from bignas_jax.cli import scripts
    from bignas_jax.search import run
    from bignas_jax.search.report import result

    def work() -> None:
        found = run.search(options, arguments.workdir, arguments.checkpoint)
        if options.distributed.process_id:
            return
        print(result.table(found))
        print("", *result.notes(found), shown(f"report: {arguments.workdir}/search/report.html"), sep="\n")

    return scripts.run(sys.argv[0], work)
