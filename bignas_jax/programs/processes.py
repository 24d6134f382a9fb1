"""The processes of a run, for the code that they run: whether there are several, and what they must do alike."""

import contextlib
import functools
import time
import traceback
from collections.abc import Callable
from typing import Any

from bignas_jax.config.options import Distributed
from bignas_jax.errors import ConfigError, Interrupted
from bignas_jax.programs.group import Group, line_of

__all__ = [
    "alone", "connect", "ends_its_process", "fail", "gather", "line_of", "name_of", "own_index", "several", "together",
]  # fmt: skip

_joined: Group | None = None


def connect(options: Distributed) -> None:
    """Joins the processes of a run, before anything else touches JAX. Does nothing for one process, or if joined.

    Raises:
      ConfigError: they did not come together within a minute; the message names the field.
    """
    global _joined
    if options.num_processes == 1 or _joined is not None:
        return
    _joined = Group(options)
    _joined.start_jax()


def together(work: Callable) -> Callable:
    """For a function whose first argument is a run's options: it runs on all processes of the run, or on none.

    The processes join before it. When it raises on one of them, the others end with the line of that one.
    """

    @functools.wraps(work)
    def joined(options: Any, *arguments: Any, **named: Any) -> Any:
        connect(options.distributed)
        with contextlib.nullcontext() if _joined is None else _joined.ending_together():
            return work(options, *arguments, **named)

    return joined


def alone(options: Distributed, work: str) -> None:
    """Refuses several processes for work that one does.

    Args:
      work: in words, such as 'an export', for the message.
    Raises:
      ConfigError: there are several; the message names the field.
    """
    if options.num_processes > 1:
        raise ConfigError(
            f"config.distributed.num_processes: found {options.num_processes}, expected 1: {work} is made by one "
            "process, on all of its devices; start it without srun and BIGNAS_NUM_PROCESSES"
        )


def gather(value: Any) -> list[Any]:
    """The values of all processes, by process. All must ask, in the same order; what JSON can hold.

    It costs one message to process 0 and one back.
    """
    return [value] if _joined is None else _joined.gather(value)


def several() -> bool:
    """Whether the run has several processes."""
    return _joined is not None


def own_index() -> int:
    """Which process this is; 0 where it is the only one."""
    return 0 if _joined is None else _joined.index


def name_of(index: int) -> str:
    """A process for messages, with its machine."""
    return _joined.name(index)


def fail(error: BaseException) -> None:
    """Ends all processes with the line of this one's error. For threads, whose errors nobody else would learn of.

    Does nothing where this process is the only one.
    """
    if _joined is not None:
        _joined.fail(error)


def ends_its_process(work: Callable[..., int]) -> Callable[..., int]:
    """For the main function of a script, which returns an exit code, or raises.

    Where several processes joined and the work failed, the process ends here: JAX would wait for the others otherwise.
    """

    @functools.wraps(work)
    def ended(*arguments: Any) -> int:
        try:
            code = work(*arguments)
        except BaseException as error:
            if isinstance(error, Interrupted | KeyboardInterrupt) and _joined is not None:
                time.sleep(0.3)  # until the others have been told; the script ends the process with its line
            if _joined is None or isinstance(error, Interrupted | KeyboardInterrupt):
                raise
            if not isinstance(error, SystemExit):
                traceback.print_exc()
            code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1
        if _joined is not None and code:
            _joined.leave(code)
        return code

    return ended
