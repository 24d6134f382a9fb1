"""The benchmark of depthwise convolutions runs, repeats what it says, and measures no shape twice."""

import json
import subprocess
import sys

from paths import ROOT

PROBE = """
import sys
sys.path.insert(0, "benchmarks")
import depthwise
import depthwise_timing as timing
import jax.numpy as jnp
import jax

calls = []
def run(x, k):
    jax.debug.callback(lambda: calls.append(1))
    return x * k
loop = jax.jit(timing.repeated(run, 5))
assert float(loop(jnp.float32(3), jnp.float32(2))) == 6
jax.effects_barrier()
assert len(calls) == 5, len(calls)

case = timing.Case("space", 6, 8, 3, 1)
entries, times = timing.measure(case, 2, "float32", 2, ["shifted"], repeats=3)
assert [e["direction"] for e in entries] == list(timing.DIRECTIONS)
assert all(e["shape"] == [2, 6, 6, 8] and e["milliseconds"]["shifted"] > 0 for e in entries)
assert all(set(times[part]) == {"torch", "ours"} for part in timing.PARTS)
small, large = (timing.repeats_of(timing.Case("space", side, 8, 3, 1), 80) for side in (7, 900))
assert (small, large) == (200, 5)
rows = {r.name for r in depthwise.results({case: times}, False)}  # XLA's is missing
assert rows and not any("XLA" in name for name in rows)


shifted = timing.IMPLEMENTATIONS["shifted"]
timing.IMPLEMENTATIONS["shifted"] = timing.dataclasses.replace(
    shifted, kernel_gradient=lambda *a: 1.1 * shifted.kernel_gradient(*a))
try:
    timing.measure(case, 2, "float32", 2, ["shifted"])
except SystemExit as error:
    assert "kernel_gradient, shifted: found a difference" in str(error)
else:
    raise AssertionError("a wrong gradient was timed")
"""


def test_repetitions_shapes_and_wrong_results():
    done = subprocess.run([sys.executable, "-c", PROBE], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_quick_run_reports_and_writes_the_table(tmp_path):
    out, table = tmp_path / "out.json", tmp_path / "table.json"
    command = [sys.executable, "benchmarks/depthwise.py", "--quick", "--write-table", str(table), "--json", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(out.read_text())["results"]
    assert all(row["value"] > 0 for row in rows)
    assert any(row["name"] == "forward: time over PyTorch's, mean of shapes" for row in rows)
    entries = json.loads(table.read_text())["cpu"]
    questions = [(e["direction"], *e["shape"], e["size"], e["stride"]) for e in entries]
    assert questions and len(questions) == len(set(questions))
