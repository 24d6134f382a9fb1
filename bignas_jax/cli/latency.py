"""Latencies on a device of your own: write the blocks of a search space for it, and check the table that comes back.

    python -m bignas_jax latency export --workdir exp/digits --out blocks
    python -m bignas_jax latency export --config configs/bignas.py --out blocks
    python -m bignas_jax latency check --workdir exp/digits --config.search.latency_table=blocks/latency.csv

`export` writes every distinct block of the space once as ONNX, a few whole networks, and measure.py, which times them
and needs onnxruntime and numpy alone. MEASURE.md says how other runtimes do. No trained supernet is needed. Times are
those of `config.search.latency_batch_size` images a call. `check` prints how far the sum of a network's blocks is off
the networks that were measured whole. A search takes the table by the same option.
"""

import pathlib
import sys

from absl import flags as absl_flags

from bignas_jax.cli import flags
from bignas_jax.errors import ConfigError
from bignas_jax.programs import memory
from bignas_jax.text import aligned, shown

ACTIONS = ("export", "check")


def define(values: absl_flags.FlagValues) -> None:
    absl_flags.DEFINE_string("out", "", "export: the folder, by default latency in the run's", flag_values=values)


def main() -> int:
    memory.keep_freed_memory()  # before the parse: a config may name classes whose modules import JAX
    options, arguments = flags.parse(sys.argv, __doc__, define, of_run=True, positional="ACTION")
    if arguments.action not in ACTIONS:
        flags.refuse(sys.argv[0], f"found {arguments.action!r}, expected one of {', '.join(ACTIONS)}, and flags")
    # JAX is imported once the command line is known to be good.
    from bignas_jax.cli import scripts

    return scripts.run(sys.argv[0], lambda: (_export if arguments.action == "export" else _check)(options, arguments))


def _export(options, arguments) -> None:
    from bignas_jax.interop.exports import latency_parts
    from bignas_jax.spaces.registry import space_of

    latency_parts.check_installed()
    folder = pathlib.Path(arguments.out or pathlib.Path(arguments.workdir) / "latency")
    batch = options.search.latency_batch_size
    written = latency_parts.write_parts(space_of(options.space), options.model.num_classes, batch, folder)
    print(
        f"{written.parts} distinct blocks and {written.networks} whole networks, {written.megabytes:,.1f} MB, "
        f"{batch} image{'s' if batch > 1 else ''} a call, in {shown(str(folder))}/\n\n"
        f"copy it to the device, and there: python {latency_parts.SCRIPT}"
    )


def _check(options, arguments) -> None:
    from bignas_jax.search.device_table import FIELD, DeviceTable
    from bignas_jax.spaces.registry import space_of

    if not options.search.latency_table:
        raise ConfigError(f"{FIELD}: found nothing, expected the table that measure.py wrote")
    space, batch = space_of(options.space), options.search.latency_batch_size
    table = DeviceTable(space, options.model.num_classes, batch, options.search.latency_table)
    found = table.check()
    print(text(found))


def text(found) -> str:
    """The result of `DeviceTable.check` as a table and a line."""
    head = ("network held back", "MACs (M)", "estimated ms", "measured ms", "error %")
    body = [
        (
            str(number),
            f"{row['macs'] / 1e6:,.2f}",
            f"{row['estimated_ms']:.4g}",
            f"{row['measured_ms']:.4g}",
            f"{100 * (row['estimated_ms'] / row['measured_ms'] - 1):+.1f}",
        )
        for number, row in enumerate(found["networks"], 1)
    ]
    error = "not known: the table has no networks that were held back"
    if found["error"] is not None:
        error = f"{100 * found['error']:.1f}% on {len(body)} whole networks held back"
    line = f"{found['device']}, batch {found['batch_size']}, {found['blocks']} measured blocks: median error {error}"
    return "\n".join([*([aligned(head, body), ""] if body else []), shown(line)])
