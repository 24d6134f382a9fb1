"""The relatives' benchmark: what each way trains, and what is made of the figures."""

import json
import sys

import forks
import pytest
from paths import ROOT
from run_lab import environment

sys.path.insert(0, str(ROOT / "benchmarks"))
import relatives  # noqa: E402
from ablations import changed  # noqa: E402

from bignas_jax.config.phases import runs_of  # noqa: E402
from bignas_jax.errors import ConfigError  # noqa: E402
from bignas_jax.spaces.registry import space_of  # noqa: E402
from configs import cifar10, ofa_cifar10  # noqa: E402

EPOCHS = {"epochs": 8, "evaluation.every_epochs": 8.0}


def test_all_ways_take_as_many_epochs_on_the_same_space():
    base = changed(cifar10.get_config(), EPOCHS)
    ways = relatives.ways(base)
    assert list(ways) == list(relatives.WAYS) and ways.pop("sandwich") == base
    for options in ways.values():
        assert sum(run.epochs for run in runs_of(options).values()) == 8 and options.batch_size == base.batch_size
        assert space_of(options.space) == space_of(base.space)
    assert len(set(map(str, ways.values()))) == len(ways) == 4
    papers = changed(base.to_dict(), {"sandwich.loss": "soft_cross_entropy"} | relatives.EQUAL)
    assert "bignas_loss" not in relatives.ways(papers)  # it is the recipe's own


def test_what_cannot_be_compared_is_refused():
    six = changed(cifar10.get_config(), {"epochs": 6})
    with pytest.raises(ConfigError, match="--epochs: found 6, expected a multiple of 4"):
        relatives.ways(six)
    assert list(relatives.ways(six, ["best_up"])) == ["best_up"]  # which asks for no multiple
    with pytest.raises(ConfigError, match="--only: found 'best', expected some of sandwich, "):
        relatives.ways(six, ["best"])
    for recipe in (ofa_cifar10.get_config(), changed(six.to_dict(), {"sandwich.members": "slices"}).to_dict()):
        with pytest.raises(ConfigError, match="trains no sandwich in one phase"):
            relatives.ways(changed(recipe, {}))


def test_shrinking_opens_one_kind_of_choice_after_another():
    options = changed(cifar10.get_config(), EPOCHS)
    runs = runs_of(changed(options.to_dict(), relatives.shrinking(options)))
    spaces = [space_of(run.space) for run in runs.values()]
    # How many values the last choice of each kind has, phase by phase.
    open_values = {kind: [[len(choice) for choice in space.choices if choice.kind == kind][-1] for space in spaces]
                   for kind in relatives.LARGEST}  # fmt: skip
    assert open_values == {"kernel_size": [1, 2, 2, 2], "depth": [1, 1, 3, 3], "expand_ratio": [1, 1, 1, 2],
                           "width": [1, 1, 1, 2]}  # fmt: skip
    rates = [run.optimizer.learning_rate / options.optimizer.learning_rate for run in runs.values()]
    assert rates == pytest.approx([1.0, 0.37, 0.09, 0.09])
    assert [run.sandwich.num_random for run in runs.values()] == [1, 1, 2, 4]
    assert {run.sandwich.members for run in runs.values()} == {"slices"}
    assert [run.teacher.source for run in runs.values()] == ["", *3 * ["phase:p0_full"]]


def test_steps_and_minutes_are_those_of_all_phases(tmp_path):
    options = changed(cifar10.get_config(), EPOCHS)
    options = changed(options.to_dict(), relatives.shrinking(options))
    for number, name in enumerate(runs_of(options)):
        folder = tmp_path / "phases" / name if name else tmp_path
        folder.mkdir(parents=True, exist_ok=True)
        rows = [{"step": 50, "images_per_second": 640.0 * (number + 1)}, {"step": 100 * (number + 1)}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    steps, minutes = relatives.trained(options, tmp_path)
    assert steps == 1000 and minutes == pytest.approx(4 * 100 * 128 / 640 / 60)


def test_it_trains_searches_and_repeated_it_trains_nothing(tmp_path):
    command = [sys.executable, "benchmarks/relatives.py", "--quick", "--evaluations", "6", "--workdir",
               str(tmp_path / "lab"), "--json", str(tmp_path / "found.json")]  # fmt: skip
    shown, logs = [], []
    for _ in range(2):
        done = forks.run(command, cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr[-2000:]
        shown.append([line.split() for line in done.stdout.splitlines() if line.startswith(("best_up ", "shrinking "))])
        logs.append({path: path.read_bytes() for path in (tmp_path / "lab").rglob("metrics.jsonl")})
    assert [line[:2] for line in shown[0]] == [["best_up", "2"], ["shrinking", "8"]]
    assert shown[0] == shown[1] and logs[0] == logs[1] and len(logs[0]) == 5
    names = {row["name"] for row in json.loads((tmp_path / "found.json").read_text())["results"]}
    kinds = ("MAX", "MIN", "winner under 50%", "minutes of its steps")
    assert names == {f"{way}: {kind}" for way in ("best_up", "shrinking") for kind in kinds}
    assert {path.name for path in (tmp_path / "lab" / "quick").iterdir()} == {"best_up-4-0", "shrinking-4-0"}


def test_a_mistake_is_one_line(tmp_path):
    command = [sys.executable, "benchmarks/relatives.py", "--quick", "--epochs", "6", "--workdir", str(tmp_path)]
    done = forks.run(command, cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True, timeout=400)
    assert done.returncode == 2 and done.stderr.startswith("relatives.py: --epochs: found 6, expected a multiple")
