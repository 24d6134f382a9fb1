"""What the text of a compiled GPU program is read as, and what the peer's operations count."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from paths import DATA, ROOT

from benchmarks.gpu.cards import CARDS
from benchmarks.gpu.eager import Counting, Eager
from benchmarks.gpu.sources import peer_sources
from benchmarks.gpu.traffic import Program

# A program that JAX 0.12 compiled for an H100: sum over rows of one or two products, of x [512, 32] and w [32, 32] in
# bfloat16. `sampled`, int32 [3, 4], says by its rows 1 and 0 whether the first and the second product run, and by
# [1, 1] how many columns of x the first one takes: 8, 16 or all.
TEXT = (DATA / "gpu_program.hlo").read_text()
X, W = 512 * 32 * 2, 32 * 32 * 2
SMALL, LARGE = 4 << 20, 32 << 20  # workspaces of cuBLAS
STEERING = 3 * 4 * 4 + 2  # the sizes are read, two conditions written
SUM = X + 32 * 4
CHOICE = (2 * 4 + 3 * 4 * 4 + 4) + (4 + 4)  # the two counts and the sizes make a number; it is clamped


def sampled(first: int, columns: int, second: int) -> np.ndarray:
    rows = np.zeros((3, 4), np.int32)
    rows[1, :2], rows[0, 0] = (first, columns), second
    return rows


def corner(columns: int) -> int:
    """Bytes of the product of the first columns: they are cut out, then multiplied."""
    return X + 2 * 512 * columns * 2 + W + X


@pytest.mark.parametrize(
    "sizes, moved, kernels",
    [
        (sampled(1, 8, 0), CHOICE + corner(8) + 2 * X, 10),
        (sampled(1, 16, 0), CHOICE + corner(16) + 2 * X, 10),
        (sampled(1, 17, 0), CHOICE + (X + W + X) + 2 * X, 9),
        (sampled(0, 0, 1), 2 * X + (X + W + X), 6),
        (sampled(0, 0, 0), 2 * X + 2 * X, 6),
    ],
)
def test_the_sizes_of_an_architecture_decide_what_runs(sizes, moved, kernels):
    program = Program(TEXT)
    count = program.of(sizes)
    assert (count.bytes, count.kernels) == (STEERING + moved + SUM, kernels)
    assert program.of(sizes, at_run_time=False) == count and not program.unknown


def test_the_text_alone_counts_half_of_what_may_be_skipped():
    found = Program(TEXT).as_written()
    # Of three branches one runs, of two the heavier half the time. The workspaces count.
    branches = corner(8) + LARGE, corner(16) + LARGE, X + W + X + SMALL
    first = 0.5 * (CHOICE + sum(branches) / 3)
    second = 0.5 * (X + W + X + SMALL)
    assert found.bytes == pytest.approx(STEERING + first + second + SUM)
    assert Program(TEXT).as_written(1.0).bytes == pytest.approx(STEERING + 2 * (first + second) + SUM)


def test_conditions_that_cannot_be_evaluated_are_told_and_count_half():
    program = Program(TEXT)
    count = program.of(None)
    half = 0.5 * (2 * X) + 0.5 * (X + W + X)  # a copy is heavier than half of the heaviest product
    assert count.bytes == pytest.approx(STEERING + half + SUM)
    assert any("%cond.15.clone" in line for line in program.unknown)


CALLS = """
ENTRY %main (sampled.1: s32[3,4], x: bf16[64,8]) -> (bf16[64,8]) {
  %x = bf16[64,8]{1,0} parameter(1), metadata={op_name="x"}
  %sampled.1 = s32[3,4]{1,0} parameter(0), metadata={op_name="sampled"}
  %slice = s32[1,1]{1,0} slice(%sampled.1), slice={[2:3], [1:2]}
  %used = s32[1]{0} bitcast(%slice)
  %call = bf16[512]{0} custom-call(%x, %used), custom_call_target="__gpu$xla.gpu.triton", metadata={op_name="jit(f)/halve"}, backend_config="{name = \\"halve_64x8_k3\\", grid_x = 1 : i32}"
  %all-reduce-start = bf16[64,8]{1,0} all-reduce-start(%x), to_apply=%add
  %all-reduce-done = bf16[64,8]{1,0} all-reduce-done(%all-reduce-start)
  ROOT %tuple = (bf16[64,8]{1,0}) tuple(%all-reduce-done)
}
"""  # noqa: E501 - as the compiler writes it


def test_kernels_of_our_own_count_what_they_state():
    sizes = np.zeros((3, 4), np.int32)
    sizes[2, 1] = 4
    stated = {}

    def halve(call):
        stated["call"] = call
        return 2 * 64 * 2 * call.integers[0][0]

    program = Program(CALLS, {"halve": halve})
    reduced = 2 * 64 * 8 * 2  # read and written
    whole = (64 * 8 * 2 + 4) + 512 * 2
    assert program.of(sizes).bytes == 2 * 64 * 2 * 4 + reduced + 3 * 4 * 4 + 4
    assert program.of(sizes, at_run_time=False).bytes == whole + reduced + 3 * 4 * 4 + 4
    assert stated["call"].shape == (64, 8) and stated["call"].settings == {"k": 3}
    assert stated["call"].operands[0].shape == (64, 8) and stated["call"].results[0].shape == (512,)
    assert program.own_kernels() == {"halve": 1}
    assert program.collectives() == [("all-reduce", 64 * 8 * 2)]


def counted(function):
    with Counting() as found:
        function()
    return found.bytes, found.kernels


def test_operations_of_pytorch_read_and_write_once_and_views_are_free():
    x = torch.zeros(4, 8, 6, 6, requires_grad=True)
    size, vector = 4 * 8 * 6 * 6 * 4, 8 * 4
    assert counted(lambda: torch.relu(x)) == (2 * size, 1)
    assert counted(lambda: x.detach().permute(0, 2, 3, 1)[:2].flatten(1, 2)) == (0, 0)
    assert counted(lambda: torch.zeros(1, 8, 1, 1).expand(4, 8, 6, 6).neg())[0] == vector + vector + size
    # Read for the moments and to normalise; the moments are written for the gradient.
    weight = torch.zeros(8)
    norm = counted(lambda: torch.nn.functional.batch_norm(x, None, None, weight, weight, training=True))
    assert norm == (3 * size + 4 * vector, 1)
    y = torch.nn.functional.conv2d(x, torch.zeros(16, 8, 1, 1, requires_grad=True))
    g, out, kernel = torch.zeros_like(y), 2 * size, 16 * 8 * 4
    gradient = counted(lambda: torch.autograd.grad(y, [x, y.grad_fn.next_functions[1][0].variable], g))
    assert gradient == ((out + kernel + size) + (out + size + kernel), 1)


def test_the_peer_is_counted_without_a_gpu():
    eager = Eager("digits", 4, "bfloat16")
    eager.member(eager.space.smallest)
    biggest, smallest = eager.member(eager.space.biggest, first=True), eager.member(eager.space.smallest)
    assert biggest.bytes > 4 * smallest.bytes > 0
    assert eager.forward(eager.space.biggest).bytes < biggest.bytes / 2
    twice = Eager("digits", 8, "bfloat16")
    twice.member(twice.space.smallest)
    # The images' part doubles, and the weights' part stays.
    assert 1.2 < twice.member(twice.space.biggest, first=True).bytes / biggest.bytes < 2
    update = eager.update()
    numbers = sum(w.numel() for w in eager._step.peer.weights.values())
    # Gradients: the norm reads them, the clip reads and writes them, and they are cleared. The update reads them, and
    # reads and writes weights and momentum. All lie in one buffer, whose arrays begin on cache lines.
    assert 4 * 9 * numbers <= update.bytes < 1.1 * 4 * 9 * numbers


def test_a_described_card_is_what_its_data_sheet_says():
    assert CARDS["h100"].bandwidth == 3352320000000 and "major: 9" in CARDS["h100"].target_config
    assert "core_count: 108" in CARDS["a100-40"].target_config
    for card in CARDS.values():
        assert card.target_config.count("{") == card.target_config.count("}")


@pytest.mark.parametrize(
    ("change", "found", "expected"),
    [({"batch": 8}, "['bignas', 8,", "['bignas', 80,"),
     ({"sources": "0123"}, "200, '0123'] for", f"['bignas', 80, 'bfloat16', 200, '{peer_sources()}']")],
)  # fmt: skip
def test_a_peers_file_for_something_else_is_refused(tmp_path, change, found, expected):
    path = tmp_path / "peer.json"
    about = {"space": "bignas", "batch": 80, "dtype": "bfloat16", "steps": 200, "sources": peer_sources()}
    path.write_text(json.dumps(about | change))
    probe = (
        "import sys, pathlib; sys.argv[1:] = ['--peer', sys.argv[1]]; from benchmarks import gpu_programs as g;"
        "g.peer_counts(g.arguments())"
    )
    done = subprocess.run([sys.executable, "-c", probe, str(path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and found in done.stderr and f"expected {expected}" in done.stderr


FAULTS = """
import dataclasses, types
from benchmarks import gpu_programs as g
from benchmarks.gpu.measure import Measured
good = Measured("step", 9e9, 9e9, 9e9, 9.0, 10**9, [], 3, {}, set(), {})
def told(size, **programs):
    setting = types.SimpleNamespace(mesh=types.SimpleNamespace(size=size))
    return g.faults({n: dataclasses.replace(good, **change) for n, change in programs.items()}, setting, 80 * 10**9)
reduce, gather = ("all-reduce", 8), ("all-gather", 8)
assert told(1, biggest={}, update={}) == []
assert told(8, biggest={}, update={"collectives": [reduce]}) == []
evaluation = {"group": "evaluation", "collectives": [reduce] * 6}
assert told(8, **{"calibrate-6": evaluation, "score-6": {"group": "search", "collectives": [gather]}}) == []
wrong = [
    told(8, biggest={"collectives": [reduce]}), told(1, update={"collectives": [reduce]}),
    told(8, update={"collectives": [reduce] * 2}), told(8, update={}), told(8, update={"collectives": [gather]}),
    told(8, **{"calibrate-6": evaluation | {"collectives": [reduce] * 7}}),
    told(1, biggest={"peak": 81 * 10**9}), told(1, biggest={"unknown": {"%cond.1: %x"}}),
]
assert [len(lines) for lines in wrong] == [1] * 8, wrong
assert told(1, biggest={"unknown": {"%x"}, "group": "kernels"}) == []
assert "found 81.0 GB of peak memory, expected at most the card's 80.0 GB" in wrong[6][0]

import json, pathlib, tempfile
file, a100 = pathlib.Path(tempfile.mkdtemp(), "found.json"), {"device": "a100"}
assert g.added(file, a100, {"ratios": {"step": 1}}) == {"device": "a100", "ratios": {"step": 1}}
file.write_text(json.dumps({"device": "a100", "sources": "x", "ratios": {"step": 1, "biggest": 2}, "faults": ["one"]}))
assert g.added(file, a100 | {"sources": "x"}, {"ratios": {"step": 3}})["ratios"] == {"step": 3, "biggest": 2}
for about in ({"device": "h100", "sources": "x"}, {"device": "a100", "sources": "y"}):
    assert g.added(file, about, {"ratios": {"step": 3}})["ratios"] == {"step": 3}
"""


def test_programs_that_reduce_too_often_or_do_not_fit_are_told():
    done = subprocess.run([sys.executable, "-c", FAULTS], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
