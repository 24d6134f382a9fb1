"""What a run tells: its records as a reader of JSON and as TensorBoard read them, over kills and restarts."""

import contextlib
import io
import json

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bignas_jax.runs import logs as module
from bignas_jax.runs.logs import Logs

STOP = 20


def opened(workdir, start=0, **arguments):
    return contextlib.closing(Logs(workdir, start, STOP, **{"bar": False} | arguments))


def strict(text):
    """JSON as its standard has it, without Python's NaN and Infinity."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def lines(workdir):
    text = (workdir / "metrics.jsonl").read_text()
    assert text == "" or text.endswith("\n")
    return [strict(line) for line in text.splitlines()]


def board(workdir):
    found = EventAccumulator(str(workdir), size_guidance={"scalars": 0, "images": 0})
    found.Reload()
    return found


def curve(workdir, name):
    return [(event.step, event.value) for event in board(workdir).Scalars(name)]


def test_a_record_is_a_line_and_a_point_of_each_curve(tmp_path):
    with opened(tmp_path) as logs:
        logs.record(1, {"loss/max": 2.5, "skipped_updates": 0})
        logs.record(2, {"loss/max": 1.25})
    assert lines(tmp_path) == [{"step": 1, "loss/max": 2.5, "skipped_updates": 0}, {"step": 2, "loss/max": 1.25}]
    assert curve(tmp_path, "loss/max") == [(1, 2.5), (2, 1.25)]
    assert set(board(tmp_path).Tags()["scalars"]) == {"loss/max", "skipped_updates"}


def test_a_line_can_be_read_before_the_run_ends(tmp_path):
    with opened(tmp_path) as logs:
        logs.record(1, {"loss": 2.0})
        assert lines(tmp_path) == [{"step": 1, "loss": 2.0}]


def test_numbers_that_json_has_not_are_null_in_the_file_and_themselves_in_tensorboard(tmp_path):
    with opened(tmp_path) as logs:
        for step, value in enumerate((float("nan"), float("inf"), -float("inf"), np.float32("nan"), 0.5)):
            logs.record(step, {"loss": value})
    assert [row["loss"] for row in lines(tmp_path)] == [None, None, None, None, 0.5]
    np.testing.assert_array_equal([value for _, value in curve(tmp_path, "loss")],
                                  [np.nan, np.inf, -np.inf, np.nan, 0.5])  # fmt: skip


def test_images_are_in_tensorboard(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 6, 3), np.uint8)
    with opened(tmp_path) as logs:
        logs.images("images", images, 3)
        logs.images("none", images[:0], 3)
    found = board(tmp_path)
    assert found.Tags()["images"] == ["images"]
    (event,) = found.Images("images")
    grid = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))
    assert event.step == 3 and grid.shape[-1] == 3
    np.testing.assert_array_equal(grid[:8, :6], images[0])
    assert sorted(map(tuple, grid.reshape(-1, 3))) == sorted(map(tuple, images.reshape(-1, 3)))


def test_a_run_that_goes_on_drops_what_came_after_its_checkpoint(tmp_path):
    with opened(tmp_path) as logs:
        for step in range(1, 8):
            logs.record(step, {"loss": float(step)})
    (events,) = tmp_path.glob("events.out.tfevents.*")
    events.rename(tmp_path / "events.out.tfevents.1000000000.before")  # two starts in one second would share a name
    with opened(tmp_path, start=5) as logs:
        assert [row["step"] for row in lines(tmp_path)] == [1, 2, 3, 4, 5]
        logs.record(6, {"loss": 60.0})
    expected = [*((step, float(step)) for step in range(1, 6)), (6, 60.0)]
    assert [(row["step"], row["loss"]) for row in lines(tmp_path)] == expected
    assert curve(tmp_path, "loss") == expected


def test_losses_from_before_a_start_are_given_up_to_its_step(tmp_path):
    with opened(tmp_path) as logs:
        for step, loss in ((1, 2.0), (2, float("nan")), (3, 1.5), (4, 1.0)):
            logs.record(step, {"loss/max": loss, "loss/min": 3.0})
        logs.record(4, {"holdout_top1/max": 0.5})
    with opened(tmp_path, start=3) as logs:
        assert logs.losses(["max", "min"]) == [(1, [2.0, 3.0]), (3, [1.5, 3.0])]
    assert Logs(tmp_path, 0, 9, active=False).losses(["max"]) == []


def test_a_step_in_which_some_members_did_not_train_has_the_losses_of_the_others(tmp_path):
    with opened(tmp_path) as logs:
        logs.record(1, {"loss/max": 2.0})
        logs.record(2, {"loss/max": float("nan")})
        logs.record(3, {"loss/max": 1.5, "loss/min": 3.0})
    with opened(tmp_path, start=3) as logs:
        assert logs.losses(["max", "min"]) == [(1, [2.0]), (3, [1.5, 3.0])]


def test_a_line_that_a_kill_cut_short_is_dropped_and_the_next_is_whole(tmp_path):
    whole = '{"step": 1, "loss": 2.0}\n'
    for cut in ('{"step": 2, "lo', '{"step": 2, "loss": 1.0}', "{"):  # the second lacks its newline alone
        (tmp_path / "metrics.jsonl").write_text(whole + cut)
        with opened(tmp_path, start=2) as logs:
            logs.record(3, {"loss": 0.5})
        assert lines(tmp_path) == [{"step": 1, "loss": 2.0}, {"step": 3, "loss": 0.5}], cut


@pytest.mark.parametrize("spoiled", [b"\0\0\0\0\0\0\0\0", b'{"step": 2, "los{"step": 3}', b"\xff\xfe\x80", b"[1]", b"7",
                                     b'{"step": "3"}', b'{"step": null}', b'{"step": {}}', b"[" * 100_000,
                                     b'{"loss": 1.0}', b""])  # fmt: skip
def test_a_spoiled_line_between_others_is_left_out_alone(spoiled, tmp_path):
    good = [b'{"step": 1, "loss": 2.0}', b'{"step": 2, "loss": null}']
    (tmp_path / "metrics.jsonl").write_bytes(good[0] + b"\n" + spoiled + b"\n" + good[1] + b"\n")
    with opened(tmp_path, start=2):
        pass
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"\n".join([*good, b""])


def test_lines_that_stay_keep_their_bytes(tmp_path):
    """Spaces, the order of names and the digits of numbers are those of the version that wrote them."""
    old = '{"loss":1e-05,  "step":1, "name": "é"}\n'
    (tmp_path / "metrics.jsonl").write_text(old, encoding="utf-8")
    with opened(tmp_path, start=1):
        pass
    assert (tmp_path / "metrics.jsonl").read_text(encoding="utf-8") == old


@pytest.mark.parametrize("records, start, evaluated", [
    ([], 0, False),
    ([(0, "holdout_top1/child")], 0, True),
    ([(4, "val_top1/max")], 4, True),
    ([(4, "loss/biggest")], 4, False),  # a signal came between the step and its evaluation
    ([(4, "val_top1/max"), (8, "loss/biggest")], 8, False),
    ([(8, "val_top1/max")], 4, False),  # of a step that is made again
])  # fmt: skip
def test_whether_the_first_step_was_evaluated_is_known(records, start, evaluated, tmp_path):
    with opened(tmp_path) as logs:
        for step, name in records:
            logs.record(step, {name: 0.5})
    with opened(tmp_path, start=start) as logs:
        assert logs.evaluated is evaluated


@pytest.fixture
def clock(monkeypatch):
    """A clock that is moved by hand: seconds, in a list of one."""
    now = [100.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    return now


def test_speed_is_counted_since_the_last_call_without_pauses(tmp_path, clock):
    with opened(tmp_path, start=10) as logs:
        clock[0] += 2
        assert logs.images_per_second(14, batch_size=32) == 4 * 32 / 2
        clock[0] += 1
        assert logs.images_per_second(15, batch_size=32) == 32
        clock[0] += 50  # an evaluation
        logs.pause(15)
        clock[0] += 0.5
        assert logs.images_per_second(16, batch_size=32) == 64
        assert logs.images_per_second(16, batch_size=32) == 0  # no step and no time passed


def test_the_bar_shows_the_steps_and_the_last_values(tmp_path, capsys):
    with opened(tmp_path, start=5, bar=True) as logs:
        logs.say("step 5: a word")
        logs.record(6, {"loss": 1.0}, show={"loss": "1.000"})
        for _ in range(3):
            logs.advance()
    out, err = capsys.readouterr()
    assert out == "" and "step 5: a word\n" in err
    last = err.replace("\r", "\n").strip().splitlines()[-1]
    assert f"8/{STOP}" in last and "loss=1.000" in last


def test_without_a_bar_only_what_is_said_is_shown(tmp_path, capsys):
    with opened(tmp_path) as logs:
        logs.advance()
        logs.record(1, {"loss": 1.0}, show={"loss": "1.000"})
        logs.say("a word")
    assert capsys.readouterr() == ("", "a word\n")


def test_other_processes_write_and_say_nothing(tmp_path, capsys):
    with opened(tmp_path, active=False, bar=True) as logs:
        logs.advance()
        logs.pause(1)
        logs.record(1, {"loss": 1.0}, show={"loss": "1.000"})
        logs.images("images", np.zeros((1, 4, 4, 3), np.uint8), 1)
        logs.say("a word")
        assert logs.images_per_second(2, batch_size=8) == 0
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr() == ("", "")
