"""SIGTERM and SIGINT, from a script's first line to its last: one line, exit code 128 + n, within half a minute.

A handler in Python runs between two of Python's instructions, which a compilation puts off for a long time. So a thread
learns of the signal as well, and ends the process where the main thread does not.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from bignas_jax.errors import Interrupted

PATIENCE = 25.0  # seconds that the main thread has to save its state and end
SIGNALS = (signal.SIGTERM, signal.SIGINT)


def script(main: Callable[[], int]) -> NoReturn:
    """Runs the main function of a script, and ends the process with the code that it returns.

    Where a signal ends it, one line says so.

    Args:
      main: the function; a first call that imports what it needs may be a part of it.
    """
    _install(sys.argv[0])
    try:
        code = main()
    except (Interrupted, KeyboardInterrupt) as error:
        signum = getattr(error, "signum", signal.SIGINT)
        sys.stdout.flush()
        print(_line(os.path.basename(sys.argv[0]), signum), file=sys.stderr, flush=True)
        os._exit(128 + signum)  # threads that compile would be waited for otherwise
    finally:
        for signum in SIGNALS:  # the work is done; Python would let them end it without a word from here on
            signal.signal(signum, signal.SIG_IGN)
    sys.exit(code)


def _install(program: str) -> None:
    """From now on SIGTERM and SIGINT raise `Interrupted` in the main thread, where nothing else handles them.

    A process that goes on for PATIENCE seconds all the same is ended, and so is one that gets a second SIGINT. Files
    are whole then, too: each is written beside its place first.

    Args:
      program: the script, for the line that it ends with.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    for signum in SIGNALS:
        signal.signal(signum, _interrupt)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(os.path.basename(program), reading), daemon=True, name="signals").start()


def working() -> None:
    """From now on there is something to clear up behind. Before, a signal ends the process where it is.

    Modules in C may crash where an error comes up in the middle of their import.
    """
    global _working
    _working = True


_working = False


def _interrupt(signum: int, _) -> None:
    if _working:
        raise Interrupted(signum)
    _end(os.path.basename(sys.argv[0]), signum)


def _line(program: str, signum: int) -> str:
    """What a script that a signal ended says."""
    return f"{program}: stopped by {signal.Signals(signum).name}; the same command goes on from the last state on disk"


def _watch(program: str, reading: int) -> None:
    """Waits for a signal, then for the end of the process."""
    first = _next(reading)
    threading.Thread(target=_end_later, args=(program, first), daemon=True, name="patience").start()
    while _next(reading) != signal.SIGINT:
        pass
    _end(program, signal.SIGINT)


def _next(reading: int) -> int:
    while True:
        (signum,) = os.read(reading, 1)
        if signum in SIGNALS:
            return signum


def _end_later(program: str, signum: int) -> None:
    time.sleep(PATIENCE)
    _end(program, signum)


def _end(program: str, signum: int) -> None:
    os.write(sys.__stderr__.fileno(), f"{_line(program, signum)}\n".encode())
    os._exit(128 + signum)
