"""Times ONNX files on this machine, one after the other, and writes a table. It needs onnxruntime and numpy alone.

    python measure.py                      # models/ beside this file, into latency.csv
    python measure.py --threads 4 --passes 9
    python measure.py --clock cpu          # on a processor that other work shares, for one thread
    python measure.py --out child.csv child.onnx

Other work on the machine can only make a time longer, and it comes and goes. So all files are timed in several passes,
and a file's calls in short windows. The table has the least of the windows' medians, over all passes. It is written
after each pass; the same command goes on with the passes that it lacks.

A call that takes longer than the slices of time in which a processor is shared is never undisturbed on a busy one.
There, --clock cpu counts the time that this process had the processor, and not the time that it waited for it.
"""

import argparse
import csv
import os
import pathlib
import platform
import statistics
import sys
import time
import zlib

# Before onnxruntime is loaded: from 1.29 on, it would send data on the models to Microsoft.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

COLUMNS = ("name", "ms", "batch", "threads", "runtime", "device", "passes")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
SAME = ("threads", "runtime", "device")  # a table's rows agree in these
WARM_UP, LEAST_WINDOWS, LEAST_CALLS, WINDOW = 3, 5, 3, 0.01  # calls, windows of a pass, calls and seconds of a window


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="ONNX files; by default those in models/ beside this")
    parser.add_argument("--out", help="the table; by default latency.csv beside this")
    parser.add_argument("--threads", type=int, default=1, help="threads of a call (default: 1)")
    parser.add_argument("--passes", type=int, default=5, help="passes over all files (default: 5)")
    parser.add_argument("--seconds", type=float, default=0.2, help="seconds for a file in a pass (default: 0.2)")
    parser.add_argument("--clock", default="wall", choices=CLOCKS, help="wall, or cpu: of this process alone")
    parser.add_argument("--provider", default="CPUExecutionProvider", help="as onnxruntime names it")
    parser.add_argument("--device", default="", help="a name of the device, for the table")
    arguments = parser.parse_args()
    for name in ("threads", "passes"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name}: found {getattr(arguments, name)}, expected at least 1")
    if arguments.clock == "cpu" and arguments.threads > 1:
        parser.error("--clock: found cpu with several threads, whose times would add up, expected wall")
    here = pathlib.Path(__file__).resolve().parent
    files = [pathlib.Path(file) for file in arguments.files]
    if not files:
        # In an order without meaning: a busy minute does not meet all of the large networks.
        files = sorted(here.glob("models/*.onnx"), key=lambda file: zlib.crc32(file.name.encode()))
    lost = [str(file) for file in files if not file.is_file()]
    if lost or not files:
        parser.error(f"found no file {lost[0] if lost else f'in {here}/models'}")
    try:
        measure(files, pathlib.Path(arguments.out or here / "latency.csv"), arguments)
    except Problem as problem:
        parser.error(str(problem))
    except KeyboardInterrupt:
        sys.exit("\nstopped; the same command goes on with the passes that are left")


class Problem(Exception):
    """What the user can mend, in one line."""


def measure(files, out, arguments):
    """Times the files in passes and writes the table after each."""
    import onnxruntime

    known = onnxruntime.get_available_providers()
    if arguments.provider not in known:
        raise Problem(f"--provider: found {arguments.provider}, expected one of {', '.join(known)}")
    setting = {
        "threads": str(arguments.threads),
        "runtime": f"onnxruntime {onnxruntime.__version__} {arguments.provider}"
        + (" (cpu time)" if arguments.clock == "cpu" else ""),
        "device": arguments.device or processor(),
    }
    rows = read(out, setting)
    for number in range(1, arguments.passes + 1):
        for place, file in enumerate(files, 1):
            name = file.name[: -len(".onnx")] if file.name.endswith(".onnx") else file.name
            row = rows.setdefault(name, dict(setting, name=name, ms="inf", batch="", passes="0"))
            if int(row["passes"]) >= number:
                continue
            ms, batch = time_file(onnxruntime, file, arguments)
            row.update(ms=repr(min(ms, float(row["ms"]))), batch=str(batch), passes=str(number))
            progress = f"\rpass {number} of {arguments.passes}, file {place} of {len(files)} "
            print(progress, end="", file=sys.stderr, flush=True)
        write(out, rows)
    print(f"\n{len(rows)} rows in {out}", file=sys.stderr)


def time_file(onnxruntime, file, arguments):
    """The milliseconds of a call, and the images of a call."""
    import numpy as np

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = arguments.threads, 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=[arguments.provider])
    except Exception as error:  # onnxruntime's own classes share no base but this one
        raise Problem(f"{file}: onnxruntime cannot load it ({' '.join(str(error).split())[:300]})") from error
    (images,) = session.get_inputs()
    shape = [side if isinstance(side, int) else 1 for side in images.shape]
    feed = {images.name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    for _ in range(WARM_UP):
        session.run(None, feed)
    medians, end = [], time.perf_counter() + arguments.seconds
    while len(medians) < LEAST_WINDOWS or time.perf_counter() < end:
        medians.append(window(lambda: session.run(None, feed), CLOCKS[arguments.clock]))
    return 1e3 * min(medians), shape[0]


def window(call, clock):
    """The median seconds of a few calls, one after the other, by this clock."""
    times, end = [], time.perf_counter() + WINDOW
    while len(times) < LEAST_CALLS or time.perf_counter() < end:
        start = clock()
        call()
        times.append(clock() - start)
    return statistics.median(times)


def read(out, setting):
    """The rows of an earlier run by name."""
    if not out.exists():
        return {}
    with open(str(out), newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        different = [name for name in SAME if row.get(name) != setting[name]]
        if different or not row.get("name") or not row.get("passes", "").isdigit():
            what = different[0] if different else "name"
            raise Problem(
                f"{out}: found a table with {what} {row.get(what)!r}, expected {setting.get(what, 'a name')!r}: give "
                "another --out, or remove it"
            )
    return {row["name"]: row for row in rows}


def write(out, rows):
    """Writes the table, whole or not at all."""
    temporary = pathlib.Path(str(out) + ".tmp")
    with open(str(temporary), "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows({name: row[name] for name in COLUMNS} for row in rows.values())
    temporary.replace(out)


def processor():
    """The model of the processor."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.lower().startswith(("model name", "hardware"))]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
