"""Train a BigNAS supernet, or one architecture of it, or go on where a run stopped.

    python train.py
    python train.py --config configs/bignas.py --config.optimizer.learning_rate=0.1 --workdir exp/mine
    python train.py --config configs/child.py --config.arch=child.json

Then `python eval.py` with the same --workdir evaluates architectures of it.
"""

import sys

from bignas_jax.cli import flags
from bignas_jax.programs import memory
from bignas_jax.text import shown


def main() -> int:
    memory.keep_freed_memory()  # before the parse: a config may name classes whose modules import JAX
    options, arguments = flags.parse(sys.argv, __doc__)
    # JAX and torch are imported once the command line is known to be good.
    from bignas_jax.cli import scripts
    from bignas_jax.runs import assess as reporting
    from bignas_jax.training import loop as training

    def work() -> None:
        rows = training.train(options, arguments.workdir)
        if options.distributed.process_id == 0:
            print(reporting.table(rows))
            workdir = shown(arguments.workdir)
            print(f"\nrun: {workdir} (tensorboard --logdir {workdir})")

    return scripts.run(sys.argv[0], work)
