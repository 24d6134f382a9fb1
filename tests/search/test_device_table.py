"""The table of another device: what is read, what is refused, and what is estimated from it."""

import dataclasses

import numpy as np
import pytest
from tiny import tiny_space

from bignas_jax.cli.latency import text
from bignas_jax.errors import ConfigError
from bignas_jax.search.device_table import DeviceTable, read_rows
from bignas_jax.spaces.cost import count
from bignas_jax.spaces.parts import distinct_parts, draw_networks, network_of, parts_of

CLASSES = 7
SPACE = dataclasses.replace(tiny_space(), resolution=(20,), head_width=(32,))
CALL, OFFSET, SLOPE = 0.5, 0.2, 0.8
FITTED, HELD_BACK = draw_networks(SPACE, 5, 5)


def own(part) -> float:
    """Milliseconds of a part without the call: a made-up law."""
    return 0.01 + 1e-4 * sum(part.shape) + 1e-5 * len(part.name)


def whole(arch) -> float:
    return OFFSET + SLOPE * (CALL + sum(map(own, parts_of(SPACE, arch, CLASSES))))


def times() -> dict[str, float]:
    found = {"call": CALL} | {part.name: CALL + own(part) for part in distinct_parts(SPACE, CLASSES)}
    return found | {network_of(SPACE, arch, CLASSES).name: whole(arch) for arch in (*FITTED, *HELD_BACK)}


def write(path, ms, head="name,ms,batch,threads,runtime,device", ending=",2,1,ort 1,board"):
    path.write_text("\n".join([head, *(f"{name},{value!r}{ending}" for name, value in ms.items())]) + "\n")
    return path


def table(path) -> DeviceTable:
    return DeviceTable(SPACE, CLASSES, 2, path)


def test_estimates_are_the_sum_of_the_parts_with_one_call_and_the_fitted_line(tmp_path):
    found = table(write(tmp_path / "t.csv", times()))
    rng = np.random.default_rng(3)
    for arch in [SPACE.sample(rng) for _ in range(20)]:
        assert found.estimate(arch) == pytest.approx(whole(arch))
    assert found.measure(HELD_BACK[0]) == pytest.approx(whole(HELD_BACK[0]))
    other = next(arch for arch in SPACE.enumerate() if arch not in (*FITTED, *HELD_BACK))
    assert found.measure(other) is None
    check = found.check()
    assert check["error"] < 1e-9 and len(check["networks"]) == 5
    assert check["device"] == "board, ort 1, threads 1" and check["blocks"] == len(distinct_parts(SPACE, CLASSES))


def test_the_error_is_that_of_networks_the_fit_has_not_seen(tmp_path):
    ms = times()
    for n, arch in enumerate(HELD_BACK):
        ms[network_of(SPACE, arch, CLASSES).name] *= 1.25 if n < 3 else 1
    found = table(write(tmp_path / "t.csv", ms)).check()
    assert found["error"] == pytest.approx(0.2)
    lines = text(found).splitlines()
    assert f"{count(SPACE, HELD_BACK[0], CLASSES).macs / 1e6:,.2f}" in lines[2] and lines[2].endswith("-20.0")
    assert "median error 20.0% on 5 whole networks held back" in lines[-1]


def test_a_search_uses_what_all_networks_say_and_the_error_what_some_do(tmp_path):
    """All networks but two of the fitted ones take 5% longer than these two say."""
    ms = times()
    for arch in (*FITTED[2:5], *HELD_BACK):
        ms[network_of(SPACE, arch, CLASSES).name] *= 1.05
    found = table(write(tmp_path / "t.csv", ms))
    assert found.check()["error"] == pytest.approx(1 - 1 / 1.05)
    assert [found.estimate(arch) for arch in HELD_BACK] == pytest.approx([1.05 * whole(arch) for arch in HELD_BACK])


def test_a_table_of_parts_alone_is_their_sum(tmp_path):
    """As one that another tool made: no call, no networks, two columns."""
    ms = {part.name: own(part) for part in distinct_parts(SPACE, CLASSES)}
    found = table(write(tmp_path / "mine.csv", ms, "name,ms", ""))
    assert found.estimate(SPACE.biggest) == pytest.approx(sum(map(own, parts_of(SPACE, SPACE.biggest, CLASSES))))
    check = found.check()
    assert check["error"] is None and check["device"] == "mine.csv" and "not known" in text(check)


@pytest.mark.parametrize("content, words", [
    (None, "No such file"), ("", "no column 'name'"), ("name,time\na,1\n", "no column 'ms'"),
    ("name,ms\na,x\n", "line 2, a: found 'x' as its milliseconds"), ("name,ms\na\n", "line 2, a: found None"),
    ("name,ms\na,-1\n", "expected a number > 0"), ("name,ms\na,nan\n", "found 'nan'"), ("name,ms\na,0\n", "found '0'"),
    ("name,ms\na,1\na,2\n", "line 3: found the name 'a', expected one that is new"),
    ("name,ms\n,2\n", "line 2: found the name ''"), ("name,ms,batch\na,1,8\n", "config.search.latency_batch_size=8"),
    ("name,ms\na,1\n", "found no row for "),
    ("\udc80".join("ab"), "expected a CSV file"),
])
def test_what_is_no_table_is_refused_in_one_line(tmp_path, content, words):
    path = tmp_path / "t.csv"
    if content is not None:
        path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match="^config.search.latency_table: ") as error:
        table(path)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_other_rows_and_columns_are_left_alone(tmp_path):
    rows = read_rows(write(tmp_path / "t.csv", {"child": 3.0}, "name,ms,note", ",fast"), 1)
    assert rows.ms == {"child": 3.0}
