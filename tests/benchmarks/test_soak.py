"""The long run in its short form, and that it finds what grows."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest
from paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import soak  # noqa: E402
import watch  # noqa: E402


def test_nothing_grows_in_a_short_run_and_over_corrupt_files(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "soak.py"), "--quick", "--json", str(tmp_path / "found.json")]
    subprocess.run(command, capture_output=True, text=True, timeout=1800)
    found = json.loads((tmp_path / "found.json").read_text())
    values = {row["name"]: row["value"] for row in found["results"]}
    assert values["steps"] == 90 and values["corrupt files met"] == 200
    assert values["programs compiled before"] > 5 and values["programs compiled after"] == 0
    assert values["processes gained after 30 steps"] == 0
    # Windows of 30 steps are short: the last evaluation may still be under way in one, and over in another.
    assert values["growth of it after 30 steps"] < 20 and values["growth of it after 20 files"] < 20
    assert [row["tried"] for row in found["faults"]] == [1, 200]


def held(**more) -> list[watch.Sample]:
    """Samples of 1,500 steps, with what grows as functions of the step."""
    flat = watch.Sample(0, 10**9, 20, 30, 8, 2)
    return [
        dataclasses.replace(flat, at=step, **{name: grown(step) for name, grown in more.items()})
        for step in range(1, 1501)
    ]


def short(results) -> list[str]:
    return [result.name for result in results if not result.reached]


def test_a_run_that_holds_the_same_all_along_is_fine():
    assert short(soak.of_training(held(), [0, 0, 1], 300)) == []
    warming = held(resident=lambda step: 10**9 if step > 300 else 10**8, handles=lambda step: 20 + (step < 300))
    assert short(soak.of_training(warming, [0], 300)) == []
    saving = held(handles=lambda step: 25 if step % 50 < 10 else 20)  # for a moment
    assert short(soak.of_training(saving, [0], 300)) == []


@pytest.mark.parametrize(
    ("more", "names"),
    [
        # 30 KB a step
        ({"resident": lambda step: 10**9 + 30_000 * step}, ["growth of it after 300 steps", "growth of its peaks"]),
        # peaks alone
        ({"resident": lambda step: 10**9 + (step % 7 == 0) * step * 10**5}, ["growth of its peaks"]),
        ({"handles": lambda step: 20 + step // 500}, ["handles gained after 300 steps"]),
        ({"threads": lambda step: 30 + step // 500}, ["threads gained after 300 steps"]),
        ({"processes": lambda step: 2 + step // 500}, ["processes gained after 300 steps"]),
    ],
)
def test_what_grows_is_named(more, names):
    assert short(soak.of_training(held(**more), [0], 300)) == names


def test_a_program_that_is_compiled_late_is_named():
    assert short(soak.of_training(held(), [0, 299, 300], 300)) == ["programs compiled after"]


def test_a_worker_that_grows_is_named():
    grown = [(s.at, s) for s in held(resident=lambda n: 10**8 + 10_000 * n)]
    assert short(soak.of_loader(grown, 1500, 150)) == ["growth of it after 150 files"]
    assert short(soak.of_loader(grown, 1600, 150)) == ["corrupt files met", "growth of it after 150 files"]
    assert [fault.lost for fault in soak.faults([], soak.of_loader(grown, 1500, 150))] == [1500]


def test_a_process_is_read_from_proc():
    before = watch.sample(os.getpid(), 3)
    with open(__file__), subprocess.Popen(["sleep", "60"]) as child:
        found = watch.sample(os.getpid(), 4)
        assert found.handles == before.handles + 1 and found.processes == before.processes + 1
        assert child.pid in watch.descendants(os.getpid())
        assert abs(watch.resident(os.getpid()) - found.resident) < found.resident / 10
        child.kill()
    assert watch.sample(child.pid, 0) is None
    assert found.at == 4 and found.threads + found.pooled >= 1


def test_every_kind_of_corrupt_file_is_corrupt(tmp_path):
    soak.write_images(tmp_path, 32)
    (*_, (skipped, _)) = soak.read(tmp_path, batch=16)
    assert skipped == 32
    kinds = {soak.corrupt(number)[0] for number in range(8)}
    assert kinds == {".jpg", ".png", ".gif", ".webp", ".bmp"}
