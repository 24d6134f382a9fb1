"""Writes the report of a finished search again.

    python -m bignas_jax report exp/digits     # from exp/digits/search/result.json
"""

import pathlib
import sys
from collections.abc import Sequence

from bignas_jax.cli import flags
from bignas_jax.errors import ConfigError, ReportError
from bignas_jax.files import locked
from bignas_jax.search.report.page import read, write
from bignas_jax.text import shown


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the report of the run's folder that `argv` names; ends with code 2 after a line on a mistake."""
    argv = flags.take_debug(sys.argv if argv is None else argv)
    program = argv[0]
    if any(argument in ("--help", "-help", "-h") for argument in argv[1:]):
        print(__doc__.strip())
        return 0
    if len(argv) != 2 or argv[1].startswith("-"):
        flags.refuse(program, f"found {len(argv) - 1} arguments, expected one: the folder of a run, as exp/digits")
    try:
        result = read(argv[1])
        with locked(pathlib.Path(argv[1]) / "search", "report") as folder:
            paths = write(result, folder)
    except (ReportError, ConfigError) as error:
        flags.refuse(program, str(error))
    except OSError as error:
        flags.refuse(program, f"{error.filename}: {error.strerror}")
    print(*map(shown, map(str, paths)), sep="\n")
    return 0
