"""Compiles every program for GPUs that are not here, and counts what it moves, beside PyTorch eager.

    make gpu-programs                     # sets up .venv-gpu (JAX for CUDA), then runs this
    python benchmarks/gpu_programs.py [--space bignas] [--batch 80] [--dtype bfloat16] [--topology 1x1x1]
        [--device h100] [--programs step evaluation search slices] [--dump FOLDER] [--json FILE] [--peer FILE]
        [--quick | --no-spills]

XLA compiles for a described GPU on a machine without one. The text of a compiled program says which kernels run, what
each of them reads and writes, and how much memory it needs (benchmarks/gpu/traffic.py). Nothing is run, so nothing is
timed: the bytes over the card's bandwidth are the least time that a program can take.

Of a program that many architectures share, three counts are printed: of the text alone (as written), for the
architectures that the steps draw with each kernel on its whole arrays (full width), and with kernels of our own
counted by the sampled sizes (sampled). The ratios use the last one. The peer is benchmarks/peer.py in eager PyTorch
under autocast, counted on fake tensors over the same drawn steps (benchmarks/gpu/eager.py): FILE holds what it wrote.
Without FILE it is looked for in benchmarks/results/gpu, and counted in the Python of .venv if it is not there.

It fails where a program does not compile, does not fit the card's memory, or has a collective too many: the members of
a step have none, and its update has one on several devices. With --no-spills it also fails where registers are spilled.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.gpu.environment import prepare  # noqa: E402

prepare(quick="--quick" in sys.argv, no_spills="--no-spills" in sys.argv)

import jax  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks.gpu.cards import CARDS  # noqa: E402
from benchmarks.gpu.measure import Measured, compile_all, measure  # noqa: E402
from benchmarks.gpu.programs import GROUPS, KERNELS, SPACES, Setting, chosen, described_mesh  # noqa: E402
from benchmarks.gpu.sources import peer_sources  # noqa: E402
from benchmarks.report import commit  # noqa: E402
from bignas_jax.programs.kept import package  # noqa: E402
from bignas_jax.text import aligned  # noqa: E402

TOPOLOGIES = ("1x1x1", "1x1x8", "1x2x8")
PARTS = ("biggest", "random", "smallest", "update")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", choices=SPACES, default="bignas")
    parser.add_argument("--batch", type=int, default=80, help="images a device")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--topology", choices=TOPOLOGIES, default="1x1x1", help="slices x hosts x devices of a host")
    parser.add_argument("--device", choices=tuple(CARDS), default="h100")
    parser.add_argument("--programs", nargs="+", default=GROUPS, metavar="NAME", help="groups, names or patterns: "
                        f"{', '.join(GROUPS)}, update, 'random-*', ... (default: all groups)")  # fmt: skip
    parser.add_argument("--remat", action="store_true", help="blocks are recomputed in the backward pass")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="programs to compile at a time")
    parser.add_argument("--steps", type=int, default=200, help="drawn steps, whose architectures are counted")
    parser.add_argument("--dump", type=pathlib.Path, metavar="FOLDER", help="folder for the programs' texts")
    parser.add_argument("--peer", type=pathlib.Path, metavar="FILE", help="what benchmarks/gpu/eager.py wrote")
    parser.add_argument("--no-peer", action="store_true", help="do not count the peer")
    parser.add_argument("--quick", action="store_true", help="compile without optimising machine code: the same count")
    parser.add_argument("--no-spills", action="store_true", help="fail where a kernel spills registers, by ptxas; for "
                        "kernels of our own: --programs 'kernels-*'")  # fmt: skip
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="file to write the counts to, or to add them "
                        "to, if it holds others of the same sources and setting")  # fmt: skip
    args = parser.parse_args()
    if min(args.batch, args.steps, args.workers) < 1:
        found = f"{args.batch}, {args.steps} and {args.workers}"
        parser.error(f"--batch, --steps, --workers: found {found}, expected at least 1")
    if args.quick and args.no_spills:
        parser.error("--quick, --no-spills: found both, expected one: machine code as it comes spills nothing")
    return args


def peer_counts(args: argparse.Namespace) -> dict | None:
    """The peer's counts, from a file or from a process of a Python that has PyTorch; None if there is none.

    Raises:
      SystemExit: the file is missing, or it was written for another space, batch, dtype or number of steps, or by
        another peer.
    """
    if args.no_peer:
        return None
    setting = {"space": args.space, "batch": args.batch, "dtype": args.dtype, "steps": args.steps}
    wanted = setting | {"sources": peer_sources()}
    kept = ROOT / "benchmarks" / "results" / "gpu" / f"eager-{args.space}.json"
    if args.peer is None and kept.exists():
        if wanted.items() <= json.loads(kept.read_text()).items():
            args.peer = kept
        else:
            print(f"{kept.relative_to(ROOT)} is of another setting or peer: counting it anew", file=sys.stderr)
    if args.peer is not None:
        try:
            found = json.loads(args.peer.read_text())
        except (OSError, ValueError) as error:
            raise SystemExit(f"--peer {args.peer}: {error}, expected what benchmarks/gpu/eager.py writes") from None
        if {name: found.get(name) for name in wanted} != wanted:
            raise SystemExit(f"--peer {args.peer}: found {[found.get(n) for n in wanted]} for {', '.join(wanted)}, "
                             f"expected {list(wanted.values())}")
        return found
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "peer.json")
        command = [_python_with_torch(), str(ROOT / "benchmarks/gpu/eager.py"), "--json", str(path)]
        for name, value in setting.items():
            command += [f"--{name}", str(value)]
        environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
        if subprocess.run(command, stdout=subprocess.DEVNULL, env=environment, check=False).returncode:
            print("no peer: benchmarks/gpu/eager.py failed (its Python needs PyTorch)", file=sys.stderr)
            return None
        return json.loads(path.read_text())


def _python_with_torch() -> str:
    own = ROOT / ".venv" / "bin" / "python"
    return str(own) if own.exists() else sys.executable


def by_part(programs: dict[str, Measured], setting: Setting, steps: int) -> dict[str, float]:
    """Bytes of the step's parts, as far as their programs are here; of a random member, the mean over the steps."""
    found = {name: programs[name].bytes for name in ("biggest", "smallest", "update") if name in programs}
    drawn = setting.drawn(steps)
    names = [f"random-{arch.resolution}" for arch in drawn]
    if names and set(names) <= set(programs):
        found["random"] = float(np.mean([programs[n].of[arch] for n, arch in zip(names, drawn, strict=True)]))
    if set(found) == set(PARTS):
        count = setting.step.recipe.num_random
        found["step"] = found["biggest"] + count * found["random"] + found["smallest"] + found["update"]
    return found


def peer_parts(peer: dict, num_random: int) -> dict[str, float]:
    """The peer's bytes of the same parts."""
    found = {name: float(np.mean(part["bytes"])) for name, part in peer["programs"].items()}
    found["step"] = found["biggest"] + num_random * found["random"] + found["smallest"] + found["update"]
    return found


def candidates(programs: dict[str, Measured], setting: Setting) -> dict[str, float]:
    """Bytes of a candidate in its shared program over those of its own slice, by kind of program."""
    found = {}
    for kind in ("calibrate", "score"):
        ratios = []
        for arch in setting.sliced():
            shared, own = (programs.get(f"{kind}-{name}{arch.resolution}") for name in ("", "slice-"))
            if shared is not None and own is not None:
                ratios.append(shared.of[arch] / own.bytes)
        if ratios:
            found[f"candidate, {kind}: mean over its own slice"] = float(np.mean(ratios))
            found[f"candidate, {kind}: worst over its own slice"] = max(ratios)
    return found


def table(programs: dict[str, Measured], bandwidth: float) -> str:
    """The programs, one a line."""
    head = "program", "GB sampled", "full width", "as written", "least ms", "kernels", "peak GB", "collectives"
    rows = []
    for name, m in programs.items():
        counts = [f"{b / 1e9:.3g}" if b < 1e9 else f"{b / 1e9:.1f}" for b in (m.bytes, m.full_width, m.as_written)]
        rows.append((name, *counts, f"{m.bytes / bandwidth * 1e3:.1f}", f"{m.kernels:.0f}", f"{m.peak / 1e9:.2f}",
                     str(len(m.collectives))))  # fmt: skip
    return aligned(head, rows)


def faults(programs: dict[str, Measured], setting: Setting, memory: int) -> list[str]:
    """What is wrong with the compiled programs, a line each."""
    found = []
    for name, m in programs.items():
        if m.peak > memory:
            found.append(f"{name}: found {m.peak / 1e9:.1f} GB of peak memory, expected at most the card's"
                         f" {memory / 1e9:.1f} GB: a smaller --batch, or --remat")
        most, kinds = allowed(name, m, setting), sorted({operation for operation, _ in m.collectives})
        if len(m.collectives) > most:
            number = f"{len(m.collectives)} collectives ({', '.join(kinds)})"
            found.append(f"{name}: found {number}, expected at most {most}")
        if name == "update" and setting.mesh.size > 1 and kinds != ["all-reduce"]:
            found.append(f"{name}: found {', '.join(kinds) or 'no collective'}, expected one all-reduce")
        if m.unknown and m.group != KERNELS:  # those are given no sizes
            found.append(f"{name}: found {len(m.unknown)} conditions that cannot be evaluated, such as"
                         f" {min(m.unknown)}: benchmarks/gpu/control.py must learn the operation")
    return found


def allowed(name: str, m: Measured, setting: Setting) -> int:
    """How many collectives a program may have."""
    if setting.mesh.size == 1:
        return 0
    if m.group == "step":
        return int(name == "update")
    # A score gathers the images' outcomes. A calibration sums the mean of each batch norm over the devices, and then
    # the variance around it.
    return 1 if name.startswith("score") else 2 * m.norms


def added(path: pathlib.Path, about: dict, found: dict[str, dict]) -> dict:
    """What goes into the JSON: what this call found, and what the file holds of the same sources and setting."""
    old = json.loads(path.read_text()) if path.exists() else {}
    if not about.items() <= old.items():
        old = {}
    return about | {name: old.get(name, {}) | values for name, values in found.items()}


def main() -> None:
    args, at = arguments(), commit()  # now: the files may change while programs compile
    card = CARDS[args.device]
    setting = Setting(args.space, args.batch, args.dtype, described_mesh(card, args.topology), args.remat)
    try:
        jobs = chosen(setting.jobs(), args.programs)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    where = f"{args.topology} {card.name}, jax {jax.__version__}"
    print(f"{args.space}, {args.batch} images a device, {args.dtype}, {where}")
    programs, wrong = {}, []
    start = time.perf_counter()
    for name, compiled in compile_all(jobs, args.workers):
        if isinstance(compiled, Exception):
            first = (str(compiled).splitlines() or [type(compiled).__name__])[0]
            wrong.append(f"{name}: does not compile: {first[:300]}")
            print(wrong[-1], file=sys.stderr)
            if args.no_spills and jobs[name].group == KERNELS:
                alone = compile_all(setting.each_kernel(name), args.workers)
                wrong += [f"  {kernel}" for kernel, found in alone if isinstance(found, Exception)]
            continue
        if args.dump is not None:
            args.dump.mkdir(parents=True, exist_ok=True)
            (args.dump / f"{name}.hlo").write_text(compiled.as_text())
        programs[name] = measure(jobs[name], compiled, setting, args.steps)
        print(f"{time.perf_counter() - start:.0f} s: {name}, {programs[name].bytes / 1e9:.2f} GB", file=sys.stderr)
    print(table(programs, card.bandwidth))
    own = by_part(programs, setting, args.steps)
    peer = peer_counts(args) if {"biggest", "random", "smallest"} & set(own) else None
    theirs = peer_parts(peer, setting.step.recipe.num_random) if peer else {}
    ratios = {name: own[name] / theirs[name] for name in ("step", *PARTS[:3]) if name in own and name in theirs}
    for name, ratio in ratios.items():
        print(f"{name}: {own[name] / 1e9:.1f} GB, PyTorch eager {theirs[name] / 1e9:.1f} GB, ratio {ratio:.3f}")
    further = candidates(programs, setting)
    for name, ratio in further.items():
        print(f"{name}: {ratio:.3f}")
    wrong += faults(programs, setting, card.memory)
    if args.json:
        about = {"space": args.space, "batch": args.batch, "dtype": args.dtype, "topology": args.topology,
                 "device": card.name, "bandwidth": card.bandwidth, "remat": args.remat, "steps": args.steps,
                 "jax": jax.__version__, "sources": package()}  # fmt: skip
        rows = {name: m.as_json() for name, m in programs.items()}
        found = {"ratios": ratios | further, "parts": own, "programs": rows, "peer": theirs}
        all_of_them = added(args.json, about, found) | {"faults": wrong, "commit": at}
        args.json.write_text(json.dumps(all_of_them, indent=1) + "\n")
    if wrong:
        raise SystemExit("\n".join(["found:", *wrong]))


if __name__ == "__main__":
    main()
