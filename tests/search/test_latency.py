"""The latency table: what a block's entry depends on, what is timed, what a file keeps, and the fit."""

import dataclasses
import json
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx
from tiny import tiny_space

from bignas_jax.errors import ConfigError
from bignas_jax.nets.mode import Mode
from bignas_jax.nets.slicing import put, single
from bignas_jax.nets.supernet import Supernet
from bignas_jax.search import latency, timing
from bignas_jax.search.latency import LatencyTable, Workload, fit_line, network_of, parts_of
from bignas_jax.search.timing import LEAST_CALLS, LEAST_ROUNDS, time_together
from bignas_jax.spaces.cost import count
from bignas_jax.spaces.mobilenet import SearchSpace

CLASSES = 7
SPACE = tiny_space()


def sample(number: int, seed: int = 0, space: SearchSpace = SPACE) -> list:
    rng = np.random.default_rng(seed)
    return [space.sample(rng) for _ in range(number)]


class FakeClock:
    """In place of `LatencyTable._times`: times that follow from the parts, and a record of what was timed."""

    def __init__(self, monkeypatch, overhead=0.3, slope=0.8):
        self.timed: list[str] = []
        self.parts = lambda part: 0.01 + 1e-4 * sum(part.shape)

        def times(table, parts):
            self.timed += [part.key for part in parts]
            return [self.ms(table, part, overhead, slope) for part in parts]

        monkeypatch.setattr(LatencyTable, "_times", times)

    def ms(self, table, part, overhead, slope) -> float:
        if part.kind != "network":
            return self.parts(part)
        pieces = [layer for layer in part.layers if layer.stage is not None or layer.kind in ("stem", "head")]
        shapes = [SimpleNamespace(shape=(layer.side, layer.side, layer.in_width)) for layer in pieces]
        return overhead + slope * sum(map(self.parts, shapes))


def table(path, space=SPACE, batch_size=2, **arguments) -> LatencyTable:
    return LatencyTable(space, CLASSES, "float32", batch_size, path / "latency.jsonl", progress=False, **arguments)


# ---- what is timed


@pytest.mark.parametrize("v3_head", [False, True])
def test_the_parts_of_a_child_one_after_the_other_are_the_child(v3_head):
    """Stem, blocks and head, each a network of its own with the child's weights, give the child's logits."""
    space = tiny_space(v3_head=v3_head)
    for arch in (space.biggest, *sample(1, 3, space)):
        params, statistics = child_weights(space, arch)
        x = np.random.default_rng(1).standard_normal((2, arch.resolution, arch.resolution, 3), np.float32)
        expected = network(single(space, arch), params, statistics, x)
        first = 0
        for part in parts_of(space, arch, CLASSES):
            assert x.shape == (2, *part.shape)
            work = Workload.of(part, CLASSES, "float32", 2)
            last = first + len(part.layers)
            own = {"modules": {n: params[first + n] for n in range(last - first)}}
            x, first = jax.jit(work.run)(own, statistics[first:last], x), last
        np.testing.assert_allclose(x, expected, rtol=2e-4, atol=2e-5)


def child_weights(space, arch):
    """Seeded weights and statistics of a child by layer, with no scale at zero."""
    work = Workload.of(network_of(space, arch, CLASSES), CLASSES, "float32", 1)
    rng = np.random.default_rng(2)
    params = jax.tree.map(lambda a: a + 0.1 * rng.standard_normal(a.shape, np.float32), work.arguments[0]["modules"])
    return params, jax.tree.map(lambda a: a + rng.uniform(0, 0.5, a.shape).astype(np.float32), work.arguments[1])


def network(space, params, statistics, x):
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: Supernet(space, CLASSES, rngs=nnx.Rngs(0))))
    nested, stored = {}, {}
    for number, layer in enumerate(space.layout(space.biggest, CLASSES)):
        put(nested, layer.path, params[number])
        stored |= {layer.statistics_name(conv): statistics[number][conv.name] for conv in layer.convs if conv.norm}

    def forward(params, statistics, x):
        return nnx.merge(graphdef, params)(x, space.biggest, mode=Mode(statistics=statistics))[0]

    return jax.jit(forward)(nested, stored, x)


def test_keys_are_equal_where_programs_are_and_nowhere_else():
    """Against the programs that JAX makes of the parts, in children that differ by one thing at a time."""
    least = SPACE.smallest
    changes = [{}, {"resolution": 26}, {"kernel_size": (3, 5, 3)}, {"expand_ratio": (1, 3, 3)}, {"depth": (1, 2, 1)},
               {"width": (16, 8, 16, 24, 32)}, {"width": (8, 8, 24, 24, 40)}]  # fmt: skip
    children = [(SPACE, dataclasses.replace(least, **change)) for change in changes]
    middle = SPACE.stages[1]
    for stage in (dataclasses.replace(middle, stride=1), dataclasses.replace(middle, se=False)):
        children.append((dataclasses.replace(SPACE, stages=(SPACE.stages[0], stage, SPACE.stages[2])), least))
    children += [(dataclasses.replace(SPACE, **c), least) for c in ({"activation": "relu"}, {"v3_head": True})]
    texts: dict[str, set[str]] = {}
    for space, arch in children:
        for part in parts_of(space, arch, CLASSES):
            work = Workload.of(part, CLASSES, "float32", 2)
            texts.setdefault(part.key, set()).add(jax.jit(work.run).lower(*work.arguments).as_text())
    assert len(texts) > 20
    assert all(len(found) == 1 for found in texts.values())
    assert len(set.union(*texts.values())) == len(texts)


def test_what_is_timed_reads_the_weights_of_the_child_and_no_more():
    """Against the count of parameters: a wider weight, to be sliced while the clock runs, would show in it."""
    for arch in (SPACE.smallest, *sample(2, 4)):
        parts = parts_of(SPACE, arch, CLASSES)
        expected = count(SPACE, arch, CLASSES).params
        assert sum(map(weights_read, parts)) == expected == weights_read(network_of(SPACE, arch, CLASSES))


def weights_read(part) -> int:
    """Numbers in the parameters that a part's program reads."""
    work = Workload.of(part, CLASSES, "float32", 2)
    jaxpr = jax.make_jaxpr(work.run)(*work.arguments).jaxpr
    read = {id(var) for equation in jaxpr.eqns for var in equation.invars}
    params = jaxpr.invars[: len(jax.tree.leaves(work.arguments[0]))]
    return sum(var.aval.size for var in params if id(var) in read)


def test_values_stay_near_one_at_any_depth():
    """Denormals, infinities and zeros have speeds of their own."""
    work = Workload.of(network_of(SPACE, SPACE.biggest, CLASSES), CLASSES, "float32", 2)
    logits = np.asarray(jax.jit(work.run)(*work.arguments))
    assert np.isfinite(logits).all() and 1e-3 < np.abs(logits).mean() < 1e3
    parts = parts_of(SPACE, SPACE.biggest, CLASSES)
    for part in (parts[0], parts[3], parts[-1]):
        work = Workload.of(part, CLASSES, "bfloat16", 2)
        out = jax.jit(work.run)(*work.arguments)
        assert out.dtype == ("float32" if part.kind == "head" else "bfloat16")
        size = np.abs(np.asarray(out, np.float32))
        assert 1e-2 < size.mean() < 1e2 and (size[size > 0] > 1e-30).all()


# ---- how it is timed


def test_the_lowest_round_counts(monkeypatch):
    """Other work on the machine adds to the times of some rounds, and must not be in the result."""
    now, calls = [0.0], {"quiet": 0, "busy": 0}
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def call(name, busy):
        def run():
            calls[name] += 1
            now[0] += 0.004 + (0.008 if busy(calls[name]) else 0)

        return run

    found = time_together([call("quiet", lambda n: False), call("busy", lambda n: n < 16)])
    assert found == pytest.approx([4, 4])
    assert min(calls.values()) >= 2 + LEAST_ROUNDS * LEAST_CALLS


def test_estimates_of_real_children_come_near_what_is_measured(tmp_path, monkeypatch):
    """To a factor of two, in seconds of this process: what others take of the processor beside it is not counted.

    With so many images the work of a block is long beside the waking of threads, which is counted, and which others
    prolong.
    """
    monkeypatch.setattr(timing.time, "perf_counter", time.process_time)
    space = dataclasses.replace(single(SPACE, SPACE.smallest), resolution=(20, 26), head_width=(32, 40))
    found = table(tmp_path, space, batch_size=128, fitted=0, held_back=1)
    check = found.check()
    assert 0.5 < check["networks"][0]["estimated_ms"] / check["networks"][0]["measured_ms"] < 2
    assert check["blocks"] == len((tmp_path / "latency.jsonl").read_text().splitlines()) - 3
    # The times are in the file: nothing is timed again, and the numbers are the same.
    again = table(tmp_path, space, batch_size=128, fitted=0, held_back=1)
    assert again.check() == check


# ---- the table and its file


def test_estimates_follow_the_fitted_line_and_held_back_networks_do_not(tmp_path, monkeypatch):
    clock = FakeClock(monkeypatch, overhead=0.3, slope=0.8)
    found = table(tmp_path)
    for arch in sample(10, 5):
        total = sum(clock.parts(part) for part in parts_of(SPACE, arch, CLASSES))
        assert found.estimate(arch) == pytest.approx(0.3 + 0.8 * total)
        assert found.measure(arch) == pytest.approx(found.estimate(arch))
    check = found.check()
    assert check["error"] < 1e-6 and len(check["networks"]) == 3 and check["batch_size"] == 2
    assert len({n["macs"] for n in check["networks"]}) > 1
    blocks = {key for key in clock.timed if json.loads(key)["part"] != "network"}
    assert check["blocks"] == len(blocks)


def test_error_is_that_of_networks_held_back_from_the_fit(tmp_path, monkeypatch):
    """Networks that take 30% longer than the blocks of the fitted ones say."""
    clock = FakeClock(monkeypatch, overhead=0.0, slope=1.0)
    found = table(tmp_path, fitted=2, held_back=4)
    slow = {network_of(SPACE, arch, CLASSES).key for arch in found._held_back}
    ms = clock.ms
    monkeypatch.setattr(clock, "ms", lambda t, part, *rest: ms(t, part, *rest) * (1.25 if part.key in slow else 1))
    check = found.check()
    assert check["error"] == pytest.approx(0.2) and len(check["networks"]) == 4


def test_nothing_is_timed_twice_nor_after_a_restart(tmp_path, monkeypatch):
    clock = FakeClock(monkeypatch)
    first = table(tmp_path)
    archs = sample(8, 2)
    first.prepare(archs)
    assert len(clock.timed) == len(set(clock.timed)) > 10
    timed = list(clock.timed)
    expected = [first.estimate(arch) for arch in archs]
    clock.parts = lambda part: 99.0  # another machine could not give the same
    again = table(tmp_path)
    assert [again.estimate(arch) for arch in archs] == expected
    assert first.check() == again.check()
    assert clock.timed == timed


def test_a_missing_block_is_timed_when_it_is_asked_for(tmp_path, monkeypatch):
    clock = FakeClock(monkeypatch)
    found = table(tmp_path)
    found.prepare([])
    known = set(clock.timed)
    for arch in SPACE.enumerate():
        new = {part.key for part in parts_of(SPACE, arch, CLASSES)} - known
        if new:
            before = len(clock.timed)
            found.estimate(arch)
            assert set(clock.timed[before:]) == new
            break
    else:
        pytest.fail("the networks of the fit have every block of the space")


def test_a_kill_loses_one_chunk_at_most(tmp_path, monkeypatch):
    clock = FakeClock(monkeypatch)
    times, chunks = LatencyTable._times, []

    def killed(table, parts):
        chunks.append(len(parts))
        if len(chunks) == 3:
            raise KeyboardInterrupt
        return times(table, parts)

    monkeypatch.setattr(LatencyTable, "_times", killed)
    monkeypatch.setattr(latency, "CHUNK", 4)
    with pytest.raises(KeyboardInterrupt):
        table(tmp_path).prepare([])
    assert len((tmp_path / "latency.jsonl").read_text().splitlines()) == 8
    table(tmp_path).prepare([])
    assert len(clock.timed) == len(set(clock.timed)) and max(chunks[:-1]) == 4


def test_a_truncated_last_line_is_dropped(tmp_path, monkeypatch):
    clock = FakeClock(monkeypatch)
    table(tmp_path).prepare([])
    path = tmp_path / "latency.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    timed = len(clock.timed)
    table(tmp_path).prepare([])
    assert len(clock.timed) == timed + 1
    assert path.read_bytes() == whole


@pytest.mark.parametrize("change", [{"batch_size": 4}, {"dtype": "bfloat16"}, {"jax": "0.0"}, {"device": "other"}])
def test_measurements_of_another_setting_are_kept_and_not_used(tmp_path, monkeypatch, change):
    clock = FakeClock(monkeypatch)
    first = table(tmp_path)
    expected = first.estimate(SPACE.biggest)
    path = tmp_path / "latency.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({**line, **change, "ms": 50.0}) + "\n" for line in lines))
    timed = len(clock.timed)
    second = table(tmp_path)
    assert second.estimate(SPACE.biggest) == expected
    assert len(clock.timed) == 2 * timed
    assert len(path.read_text().splitlines()) == 2 * len(lines)


@pytest.mark.parametrize("line", ["{", "[1]", '{"ms": 1}', '{"of": {}, "ms": -1}', '{"of": {}, "ms": NaN}', "\xff"])
def test_a_file_of_something_else_is_refused_in_one_line(tmp_path, line):
    path = tmp_path / "latency.jsonl"
    path.write_bytes(line.encode("latin1") + b"\n")
    with pytest.raises(ConfigError, match="latency.jsonl line 1: found something that is no measurement") as error:
        table(tmp_path)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == line.encode("latin1") + b"\n"


def test_an_architecture_of_another_space_is_refused(tmp_path):
    other = dataclasses.replace(SPACE.biggest, resolution=21)
    for ask in ("estimate", "measure"):
        with pytest.raises(ValueError, match="resolution: found 21"):
            getattr(table(tmp_path), ask)(other)
    assert not (tmp_path / "latency.jsonl").exists()


@pytest.mark.parametrize("held_back", [0, 3])
def test_a_space_of_few_architectures_has_fewer_networks(tmp_path, monkeypatch, held_back):
    FakeClock(monkeypatch, overhead=0.3, slope=0.8)
    alone = single(SPACE, SPACE.smallest)
    found = table(tmp_path, alone, held_back=held_back)
    assert found.estimate(alone.biggest) == pytest.approx(found.measure(alone.biggest))
    assert found.check()["error"] is None and found.check()["networks"] == []


# ---- the fit


def test_the_line_goes_through_points_on_a_line():
    x = np.array([1.0, 2.0, 4.0, 8.0])
    assert fit_line(x, 0.5 + 0.25 * x) == pytest.approx((0.5, 0.25))


def test_one_disturbed_network_does_not_move_the_line():
    x = np.array([1.0, 8.0, 2.0, 4.0, 5.0])
    y = 0.5 + 0.25 * x
    y[1] *= 3
    assert fit_line(x, y) == pytest.approx((0.5, 0.25))
    assert abs(np.polyfit(x, y, 1)[0] - 0.25) > 0.1  # as it moves least squares


def test_no_other_line_has_a_smaller_relative_error():
    rng = np.random.default_rng(0)
    for _ in range(20):
        x = rng.uniform(1, 5, 5)
        y = 0.2 + 0.5 * x * rng.uniform(0.3, 1.5, 5)

        def error(a, b, x=x, y=y):
            return np.sum(np.abs(a + b * x - y) / y)

        a, b = fit_line(x, y)
        assert b >= 0
        others = (error(a + da, max(0.0, b + db)) for da, db in rng.normal(0, 0.1, (2000, 2)))
        assert error(a, b) <= min(others) + 1e-12


def test_the_slope_is_never_negative():
    assert fit_line([1, 2, 3], [3, 2, 1]) == (1.0, 0.0)
    assert fit_line([2, 2, 2], [5, 6, 5]) == (5.0, 0.0)
    assert fit_line([2], [5]) == (5.0, 0.0)
