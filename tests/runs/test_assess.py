"""Evaluations as users see them: rows, the file of a step, and the table."""

import json
from types import SimpleNamespace

import pytest
from tiny import CLASSES, tiny_space

from bignas_jax.errors import ConfigError
from bignas_jax.evaluation import Score
from bignas_jax.programs.buckets import Bucket
from bignas_jax.runs import assess
from bignas_jax.spaces.cost import count

SPACE = tiny_space()
ENDS = [SPACE.biggest, SPACE.smallest]


def session(asked):
    """A session whose n-th architecture has n right answers of ten; `asked` gets what was asked for."""

    def evaluate(weights, archs, split, statistics):
        asked.append((weights, split, statistics))
        # In an order of its own: rows must go by architecture.
        return {arch: Score(n / 10, 0.9, 1.5 + n, 10, 123.456) for n, arch in reversed(list(enumerate(archs)))}

    options = SimpleNamespace(model=SimpleNamespace(num_classes=CLASSES))
    return SimpleNamespace(space=SPACE, options=options, evaluate=evaluate)


def rows_of(archs, *arguments):
    return assess.assess(session([]), "w", {arch: Bucket(arch, masked=False) for arch in archs}, "val", *arguments)


def test_a_row_says_what_was_evaluated_and_how_it_did():
    asked, statistics = [], {SPACE.biggest: "s"}
    archs = {arch: Bucket(arch, masked=False) for arch in ENDS}
    biggest, smallest = assess.assess(session(asked), "w", archs, "holdout", statistics=statistics)
    assert asked == [("w", "holdout", statistics)]
    cost = count(SPACE, SPACE.smallest, CLASSES)
    assert smallest == {
        "name": "MIN", "architecture": SPACE.smallest.to_dict(), "macs": cost.macs, "params": cost.params,
        "top1": 0.1, "top5": 0.9, "loss": 2.5, "images": 10, "images_per_second": 123.5,
    }  # fmt: skip
    assert (biggest["name"], biggest["top1"]) == ("MAX", 0) and biggest["macs"] > smallest["macs"]


def test_names_are_those_given_or_count_up():
    middle = next(arch for arch in SPACE.enumerate() if arch not in ENDS)
    archs = [SPACE.biggest, middle, SPACE.smallest]
    assert [row["name"] for row in rows_of(archs)] == ["MAX", "arch2", "MIN"]
    named = rows_of(archs, {"a": archs[0], "b": archs[2], "c": archs[2]})
    assert [(row["name"], row["top1"]) for row in named] == [("a", 0.0), ("b", 0.2), ("c", 0.2)], "two names, two rows"


def row(name, **values):
    return {"name": name, "architecture": {"resolution": 20}, "macs": 1_234_567_890, "params": 7_654_321,
            "top1": 0.12345, "top5": 1.0, "loss": 2.0, "images": 10, "images_per_second": 4321.6} | values  # fmt: skip


def test_rows_of_a_step_gather_in_one_file_and_another_step_begins_anew(tmp_path):
    path = assess.write([row("MAX"), row("MIN")], tmp_path, "val", 7)
    assert path == tmp_path / "evaluation_val.json"
    assess.write([row("MIN", top1=0.5), row("mine")], tmp_path, "val", 7)
    found = json.loads(path.read_text())
    assert (found["step"], found["split"]) == (7, "val")
    assert [(r["name"], r["top1"]) for r in found["rows"]] == [("MAX", 0.12345), ("MIN", 0.5), ("mine", 0.12345)]
    assess.write([row("MIN")], tmp_path, "val", 8)
    assert json.loads(path.read_text()) == {"step": 8, "split": "val", "rows": [row("MIN")]}
    assess.write([row("MAX")], tmp_path, "holdout", 8)
    assert assess.write([row("SLICE")], tmp_path, "val", 0, name="before") == tmp_path / "evaluation_before.json"
    assert sorted(p.name for p in tmp_path.glob("[!.]*")) == [
        "evaluation_before.json", "evaluation_holdout.json", "evaluation_val.json"]  # fmt: skip
    assert json.loads((tmp_path / "evaluation_before.json").read_text())["split"] == "val"


def test_what_is_not_the_runs_own_goes_to_a_file_that_says_so(tmp_path):
    own = assess.write([row("MAX")], tmp_path, "val", 7)
    before = own.read_bytes()
    other = assess.write([row("MAX", top1=0.5)], tmp_path, "val", 7, changed=["config.seed: 0 -> 1"])
    assert own.read_bytes() == before and other == tmp_path / "evaluation_val_changed.json"
    assess.write([row("MIN")], tmp_path, "val", 7, changed=["config.seed: 0 -> 1"])
    found = json.loads(other.read_text())
    assert found["changed"] == ["config.seed: 0 -> 1"] and [r["name"] for r in found["rows"]] == ["MAX", "MIN"]
    assess.write([row("MIN")], tmp_path, "val", 7, changed=["config.seed: 0 -> 2"])
    assert [r["name"] for r in json.loads(other.read_text())["rows"]] == ["MIN"]


def test_a_name_does_not_hide_another_architecture(tmp_path):
    assess.write([row("MAX")], tmp_path, "val", 7)
    other = row("MAX", architecture={"resolution": 16})
    assess.write([other], tmp_path, "val", 7)
    assert assess.read(tmp_path, "val", 7) == [row("MAX"), other]


@pytest.mark.parametrize("text", ["{", "[]", '{"step": 7}', '{"step": 7, "rows": [{"name": "MAX"}]}', ""])
def test_a_file_that_an_evaluation_did_not_write_is_kept_aside(text, tmp_path, capsys):
    path = tmp_path / "evaluation_val.json"
    path.write_text(text)
    assess.write([row("MAX")], tmp_path, "val", 7)
    assert assess.read(tmp_path, "val", 7) == [row("MAX")]
    assert (tmp_path / "evaluation_val.damaged.json").read_text() == text
    assert capsys.readouterr().err.count("\n") == 1


def test_a_loss_that_is_no_number_is_null(tmp_path):
    path = assess.write([row("a", loss=float("nan")), row("b", loss=float("inf"))], tmp_path, "val", 7)
    found = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert [r["loss"] for r in found["rows"]] == [None, None]


def test_the_rows_of_a_step_are_read_for_that_step_alone(tmp_path):
    assert assess.read(tmp_path, "val", 7) == []
    assess.write([row("MAX")], tmp_path, "val", 7)
    assert assess.read(tmp_path, "val", 7) == [row("MAX")] and assess.read(tmp_path, "val", 6) == []


def test_a_finished_run_leaves_the_slice_and_the_last_step(tmp_path):
    assess.write([row("SLICE")], tmp_path, "val", 0, name="before")
    with pytest.raises(ConfigError, match=f"^{tmp_path} has no evaluation of its last step, 7: run eval.py"):
        assess.left(tmp_path, 7)
    assess.write([row("CHILD")], tmp_path, "val", 7)
    assert [r["name"] for r in assess.left(tmp_path, 7)] == ["SLICE", "CHILD"]


def test_the_table():
    assert assess.table([row("MAX"), row("a-longer-name", macs=500, params=50, images_per_second=0.0)]) == "\n".join([
        "architecture   resolution  MACs (M)  params (M)  top-1 %  top-5 %  images/s",
        "-------------  ----------  --------  ----------  -------  -------  --------",
        "MAX                    20  1,234.57       7.654    12.35   100.00     4,322",
        "a-longer-name          20      0.00       0.000    12.35   100.00         -",
    ])  # fmt: skip


def test_stored_statistics_are_refused_for_all_but_the_biggest():
    found = {"MAX": SPACE.biggest, "MIN": SPACE.smallest, "mine": SPACE.smallest}
    with pytest.raises(ConfigError, match="^--statistics=stored: found MIN, mine, expected --arch max alone"):
        assess._stored(session([]), found, None, 0)
