"""Writes the report of a finished search again, or compares several searches on one page.

    python -m bignas_jax report exp/digits                   # from exp/digits/search/result.json
    python -m bignas_jax report exp/a exp/b exp/c            # the fronts of all on one plot, in comparison.html
    python -m bignas_jax report exp/a exp/b --cost latency_ms --out both.html
"""

import argparse
import os
import pathlib
import sys
from collections.abc import Sequence

from bignas_jax.cli import flags
from bignas_jax.config.choices import Costs
from bignas_jax.errors import ConfigError, ReportError
from bignas_jax.files import locked
from bignas_jax.search.report import comparison
from bignas_jax.search.report.page import read, write
from bignas_jax.text import shown


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the report of the run's folder that `argv` names, or the comparison of several; ends with code 2 after a
    line on a mistake."""
    program, *rest = flags.take_debug(sys.argv if argv is None else argv)
    parser = flags.Parser(program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="the folder of a run that was searched")
    parser.add_argument("--out", default="comparison.html", help="the page that compares several runs")
    parser.add_argument("--cost", default="", choices=["", *Costs], help="its axis; by default the first run's")
    arguments = parser.parse_args(rest)
    try:
        paths = _report(arguments.runs[0]) if len(arguments.runs) == 1 else _compare(arguments)
    except (ReportError, ConfigError) as error:
        flags.refuse(program, str(error))
    except OSError as error:
        flags.refuse(program, f"{error.filename or 'a file'}: {error.strerror}")
    print(*map(shown, map(str, paths)), sep="\n")
    return 0


def _report(run: str) -> list[pathlib.Path]:
    result = read(run)
    with locked(pathlib.Path(run) / "search", "report") as folder:
        return write(result, folder)


def _compare(arguments: argparse.Namespace) -> list[pathlib.Path]:
    names = names_of(arguments.runs)
    results = {name: read(run) for name, run in zip(names, arguments.runs, strict=True)}
    return [comparison.write(results, pathlib.Path(arguments.out), arguments.cost)]


def names_of(runs: Sequence[str]) -> list[str]:
    """A name for each run: the last part of its path, or the whole path where parts are alike.

    Raises:
      ReportError: a folder is named twice.
    """
    paths = [os.path.normpath(run) for run in runs]
    twins = [path for n, path in enumerate(paths) if path in paths[:n]]
    if twins:
        raise ReportError(f"found {twins[0]} twice, expected runs that differ")
    last = [os.path.basename(path) for path in paths]
    return [path if last.count(name) > 1 or name in ("", ".", "..") else name
            for path, name in zip(paths, last, strict=True)]  # fmt: skip
