"""How the scripts end: what a user can mend is one line on stderr, anything else keeps its traceback."""

from collections.abc import Callable

import jax

from bignas_jax.cli import flags, stopping
from bignas_jax.errors import ExportError, Stopped, TrainingError, UserError
from bignas_jax.programs.processes import ends_its_process


@ends_its_process
def run(program: str, work: Callable[[], None]) -> int:
    """Calls `work` and returns the exit code of the script `program`.

    2: the command, the config, the data or a file must change. 1: the run failed. 128 + n: signal n ended it.
    """
    stopping.working()
    try:
        work()
    except (TrainingError, ExportError) as error:
        return _end(program, str(error), error.exit_code)
    except UserError as error:
        flags.refuse(program, str(error))
    except OSError as error:
        if error.filename is None and error.strerror is None:
            raise
        flags.refuse(program, f"{error.filename or 'a file'}: {error.strerror}")
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        advice = "lower config.batch_size or config.evaluation.batch_size, or set config.remat=True"
        advice += ", or config.model.dtype=bfloat16; docs/gpu.md lists the largest batches of GPUs"
        return _end(program, f"the device's memory ran out: {advice}", 1)
    except Stopped as stop:
        return _end(program, f"stopped by {stop}; the same command goes on from there", stop.exit_code)
    return 0


def _end(program: str, message: str, code: int) -> int:
    flags.complain(program, message)
    return code
