"""The largest batch of a step that fits a GPU of 40 and of 80 GB, from compiled programs. No GPU is needed.

    python benchmarks/gpu_memory.py [--spaces bignas attentive_nas] [--dtypes bfloat16 float32] [--remat no yes]
        [--batches 32 64 128] [--json FILE]
    python benchmarks/gpu_memory.py --table       # compiles nothing: writes the table of docs/gpu.md from FILE

A program's peak is what the compiler planned for it: arguments, results and temporaries. The biggest member and the
random ones of the highest resolution need the most. Beside a member's program the optimizer's state lies on the card,
and the images of two batches that were read ahead. The need is linear in the batch: the first and the last of --batches
give the line, and those between must lie on it within 2%. JAX takes three quarters of a card's memory, unless
XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
"""

import argparse
import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.gpu.environment import prepare  # noqa: E402

prepare(quick=True)

import jax  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks.gpu.cards import CARDS  # noqa: E402
from benchmarks.gpu.measure import compile_all, peak_bytes  # noqa: E402
from benchmarks.gpu.programs import SPACES, Setting, described_mesh  # noqa: E402

PAGE, BEGIN, END = ROOT / "docs" / "gpu.md", "<!-- memory: begin -->\n", "<!-- memory: end -->"
RESULTS = ROOT / "benchmarks" / "results" / "gpu" / "memory.json"
FRACTION = 0.75  # of a card's memory, that JAX takes by itself
MEMORY = {"40 GB": CARDS["a100-40"].memory, "80 GB": CARDS["a100"].memory}
READ_AHEAD = 2  # batches
TOLERANCE = 0.02  # of a point that the line was not drawn through
MULTIPLE = 8  # of the batches that are proposed


def size(tree) -> int:
    """Bytes of a tree of arrays or shapes."""
    return sum(int(np.prod(a.shape)) * np.dtype(a.dtype).itemsize for a in jax.tree.leaves(tree))


def need(space: str, dtype: str, remat: bool, batch: int) -> int:
    """The most bytes that lie on a card at a time during a step."""
    setting = Setting(space, batch, dtype, described_mesh(CARDS["a100"], "1x1x1"), remat)
    names = ("biggest", f"random-{max(setting.space.resolutions)}")
    jobs = setting.step_jobs()
    peaks = {}
    for name, compiled in compile_all({name: jobs[name] for name in names}, len(names)):
        if isinstance(compiled, Exception):
            raise compiled
        peaks[name] = peak_bytes(compiled)
    state = size(jax.eval_shape(setting.step.optimizer.init, setting.params))
    ema = size(setting.params) if setting.step.recipe.ema_decay else 0
    images = READ_AHEAD * batch * setting.config.data.image_size**2 * 3
    return max(peaks.values()) + state + ema + images


def line(points: dict[int, int]) -> tuple[float, float]:
    """(bytes without images, bytes an image), through the smallest and the largest batch.

    Raises:
      ValueError: a batch between them needs something else.
    """
    first, last = min(points), max(points)
    slope = (points[last] - points[first]) / (last - first)
    base = points[first] - slope * first
    for batch, found in points.items():
        if abs(base + slope * batch - found) > TOLERANCE * found:
            expected = f"{(base + slope * batch) / 1e9:.2f} GB by the line of the others"
            raise ValueError(f"found {found / 1e9:.2f} GB at batch {batch}, expected {expected}")
    return base, slope


def largest(base: float, slope: float, memory: float) -> int:
    """The largest batch that fits, a multiple of MULTIPLE; 0 if none does."""
    return max(0, int((FRACTION * memory - base) / slope) // MULTIPLE * MULTIPLE)


def row(space: str, dtype: str, remat: bool, batches: list[int]) -> dict:
    """Measures one line of the table."""
    points = {batch: need(space, dtype, remat, batch) for batch in batches}
    base, slope = line(points)
    found = {name: largest(base, slope, memory) for name, memory in MEMORY.items()}
    return {"space": space, "dtype": dtype, "remat": remat, "points": points, "bytes": base, "bytes_an_image": slope,
            "largest": found, "jax": jax.__version__}  # fmt: skip


def table(rows: list[dict]) -> str:
    """The rows in Markdown."""
    if not rows:
        return "Not compiled yet."
    lines = ["| space | dtype | `config.remat` | 80 images | an image | " + " | ".join(MEMORY) + " |",
             "|---|---|---|---|---|" + "---|" * len(MEMORY)]  # fmt: skip
    for r in rows:
        usual = f"{(r['bytes'] + 80 * r['bytes_an_image']) / 1e9:.1f} GB"
        largest_ = " | ".join(str(r["largest"][name]) for name in MEMORY)
        lines.append(f"| {r['space']} | {r['dtype']} | {r['remat']} | {usual} | {r['bytes_an_image'] / 1e6:.0f} MB |"
                     f" {largest_} |")  # fmt: skip
    return "\n".join(lines)


def inserted(page: str, text: str) -> str:
    """The page with `text` between its markers."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}{text}\n{END}{rest.split(END)[1]}"


def key(row: dict) -> tuple:
    """What tells the rows of a file apart."""
    return row["space"], row["dtype"], row["remat"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spaces", nargs="+", choices=SPACES, default=["bignas", "attentive_nas"])
    parser.add_argument("--dtypes", nargs="+", choices=("bfloat16", "float32"), default=["bfloat16", "float32"])
    parser.add_argument("--remat", nargs="+", choices=("no", "yes"), default=["no", "yes"])
    parser.add_argument("--batches", nargs="+", type=int, default=[32, 64, 128], help="two or more")
    parser.add_argument("--json", type=pathlib.Path, default=RESULTS, metavar="FILE", help="rows are replaced in it")
    parser.add_argument("--table", action="store_true", help="write the table of docs/gpu.md")
    args = parser.parse_args()
    if min(args.batches) < 1 or len(set(args.batches)) < 2:
        parser.error(f"--batches: found {args.batches}, expected two or more, each at least 1")
    rows = json.loads(args.json.read_text()) if args.json.exists() else []
    if args.table:
        PAGE.write_text(inserted(PAGE.read_text(), table(rows)))
    else:
        for space in args.spaces:
            for dtype in args.dtypes:
                for remat in args.remat:
                    try:
                        new = row(space, dtype, remat == "yes", args.batches)
                    except ValueError as error:
                        raise SystemExit(f"{space}, {dtype}, remat {remat}: {error}") from None
                    print(f"{space}, {dtype}, remat {remat}: {new['largest']}", file=sys.stderr)
                    rows = sorted([*(r for r in rows if key(r) != key(new)), new], key=key)
                    args.json.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
