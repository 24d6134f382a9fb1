"""Which implementation the table of measurements names for shapes in it, near it, and on other devices."""

import jax
import jax.numpy as jnp

from bignas_jax.kernels.depthwise import table as depthwise_table
from bignas_jax.kernels.depthwise.choice import IMPLEMENTATIONS, choose
from bignas_jax.kernels.depthwise.table import DEFAULTS, dumps, fastest, merge

ALL = ["shifted", "grouped", "pallas"]


def entry(shape, direction="forward", **milliseconds):
    return {
        "direction": direction, "shape": list(shape), "size": 5, "stride": 1, "dtype": "bfloat16",
        "milliseconds": milliseconds,
    }


TABLE = {
    "GPU X": [
        entry((80, 40, 40, 240), shifted=3.0, grouped=2.0, pallas=1.0),
        entry((80, 10, 10, 1296), shifted=3.0, grouped=1.0, pallas=2.0),
        entry((80, 40, 40, 240), "kernel_gradient", shifted=1.0, grouped=2.0),
    ]
}


def ask(shape, kind="GPU X", size=5, stride=1, dtype=jnp.bfloat16, direction="forward", usable=ALL):
    return fastest(kind, shape, size, stride, dtype, direction, usable, TABLE)


def test_the_nearest_shape_answers():
    assert ask((80, 40, 40, 240)) == ask((256, 48, 48, 192)) == "pallas"
    assert ask((80, 10, 10, 1296)) == ask((80, 12, 12, 768)) == "grouped"
    (batch,) = jax.export.symbolic_shape("batch")
    assert ask((batch, 9, 9, 2112)) == "grouped"


def test_directions_answer_for_themselves():
    assert ask((80, 10, 10, 1296), direction="kernel_gradient") == "shifted"
    assert ask((80, 10, 10, 1296), direction="input_gradient") == "pallas"


def test_nothing_like_it_was_measured():
    assert {ask((80, 40, 40, 240), **other) for other in
            ({"kind": "GPU Y"}, {"size": 3}, {"stride": 2}, {"dtype": jnp.float32})} == {"pallas"}
    assert ask((80, 40, 40, 240), kind="GPU Y", usable=["shifted", "grouped"]) == "shifted"


def test_only_what_can_run_is_named():
    assert ask((80, 40, 40, 240), usable=["shifted", "grouped"]) == "grouped"
    assert ask((80, 40, 40, 240), usable=["native"]) == "shifted"


def test_a_convolution_is_chosen_by_the_table(monkeypatch):
    monkeypatch.setattr(depthwise_table, "load", lambda: TABLE)

    def chosen(platform, dtype=jnp.bfloat16, kind="GPU X", batch=80):
        return choose(platform, (batch, 40, 40, 240), 5, 1, dtype, kind=kind)

    assert chosen("gpu") == "pallas"
    assert chosen("gpu", kind="GPU Y") == "pallas" and chosen("gpu", jnp.float64) == "shifted"
    assert chosen("gpu", batch=2**20) == "grouped"  # too many entries for the Pallas kernels
    assert chosen("cpu") == "shifted_loop"


def test_the_table_in_the_package_names_implementations():
    table = depthwise_table.load()
    named = {name for entries in table.values() for e in entries for name in e["milliseconds"]}
    assert named | set(DEFAULTS) <= set(IMPLEMENTATIONS)


def test_new_measurements_replace_old_ones_and_are_read_back(monkeypatch, tmp_path):
    again, other = entry((80, 10, 10, 1296), pallas=0.5, grouped=1.0), entry((80, 40, 40, 240), pallas=1.0)
    table = merge(merge(TABLE, "GPU X", [again]), "GPU Y", [other])
    assert [len(table[kind]) for kind in ("GPU X", "GPU Y")] == [3, 1]
    monkeypatch.setattr(depthwise_table, "PATH", tmp_path / "table.json")
    for content in (table, {}):
        depthwise_table.PATH.write_text(dumps(content))
        assert depthwise_table.load.__wrapped__() == content
    assert fastest("GPU X", (80, 9, 9, 1296), 5, 1, jnp.bfloat16, "forward", ALL, table) == "pallas"
