"""Train a BigNAS supernet, or go on where a run stopped.

    python train.py
    python train.py --config configs/bignas.py --config.optimizer.learning_rate=0.1 --workdir exp/mine

Then `python eval.py` with the same --workdir evaluates architectures of it.
"""

import sys

from bignas_jax import flags


def main() -> int:
    config, options = flags.parse(sys.argv, __doc__)
    # JAX and torch are imported once the command line is known to be good.
    from bignas_jax import reporting, training

    try:
        rows = training.train(config, options.workdir)
    except ValueError as error:
        flags.refuse(sys.argv[0], str(error))
    except training.TrainingError as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 1
    except training.Stopped as stop:
        print(f"train.py: stopped by {stop}; the same command goes on from there", file=sys.stderr)
        return 128 + stop.signum
    except KeyboardInterrupt:
        print("train.py: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    if config.distributed.process_id == 0:
        print(reporting.table(rows))
        print(f"\nrun: {options.workdir} (tensorboard --logdir {options.workdir})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
