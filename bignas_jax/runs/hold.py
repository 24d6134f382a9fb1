"""A folder that one piece of work has to itself, on all processes of a run alike."""

import contextlib
import pathlib
from collections.abc import Iterator

from bignas_jax.errors import ConfigError
from bignas_jax.files import locked
from bignas_jax.programs.processes import gather, line_of, name_of, own_index
from bignas_jax.runs.agree import check_folder


@contextlib.contextmanager
def held(folder: pathlib.Path, work: str) -> Iterator[pathlib.Path]:
    """The folder, for one piece of work at a time. The first process locks it; where it cannot, all processes end.

    Args:
      folder: is made where it is missing.
      work: in words, as `files.locked` takes them.
    Raises:
      ConfigError: other work holds it, it cannot be written to, or a process does not see it.
    """
    refusal = None
    with contextlib.ExitStack() as stack:
        try:
            if own_index() == 0:
                stack.enter_context(locked(folder, work))
        except OSError as error:
            refusal = ConfigError(
                f"--workdir: cannot write to {folder} ({error.strerror}): make room, or give another folder"
            )
        except ConfigError as error:
            refusal = error
        found = gather(refusal and line_of(refusal)[0])[0]
        if found is not None:
            raise refusal or ConfigError(f"{name_of(0)}: {found}")
        check_folder(folder)
        yield folder
