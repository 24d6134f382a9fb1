"""The ablations' benchmark: what is trained, and what is made of the figures."""

import json
import sys

import forks
import numpy as np
import pytest
from paths import ROOT
from run_lab import environment

sys.path.insert(0, str(ROOT / "benchmarks"))
import ablations  # noqa: E402
import trainings  # noqa: E402

from bignas_jax.config.files import to_json  # noqa: E402
from bignas_jax.config.options import Options  # noqa: E402
from bignas_jax.config.phases import runs_of  # noqa: E402
from bignas_jax.errors import ConfigError  # noqa: E402
from configs import cifar10, digits  # noqa: E402


def test_each_part_is_one_change_to_the_papers_recipe():
    base = ablations.changed(cifar10.get_config(), ablations.papers(3))
    assert base.optimizer.decay_epochs == pytest.approx(0.02) and base.model.dropout == 0.2
    for changes in ablations.PARTS.values():
        other = ablations.changed(cifar10.get_config(), ablations.papers(3) | changes)
        assert other != base and ablations.changed(other.to_dict(), values_of(base, changes)) == base


def values_of(options: Options, changes) -> dict:
    """What the changed fields were."""
    found = {}
    for name in changes:
        value = options.to_dict()
        for part in name.split("."):
            value = value[part]
        found[name] = value
    return found


def test_a_variant_of_ones_own_is_read_and_nonsense_is_named():
    assert ablations.given(["wide", "space.head_width=(256,)", "sandwich.loss=labels", "model.dropout=0.1"]) == (
        "wide", {"space.head_width": (256,), "sandwich.loss": "labels", "model.dropout": 0.1},
    )  # fmt: skip
    for words in (["x", "epochs"], ["a/b"], ["as it is"]):
        with pytest.raises(SystemExit, match=r"expected (FIELD=VALUE|one of a folder, other than 'as it is')"):
            ablations.given(words)
    for changes, message in (
        ({"sandwich.los": "labels"}, "'sandwich.los', expected the name of a field"),
        ({"seed.sandwich": 1}, "expected the name of a field"),
        ({"sandwich.loss": "label"}, "config.sandwich.loss: found 'label'"),
        ({"phases": 3}, "config.phases: found 3"),
    ):
        with pytest.raises(ConfigError, match=message):
            ablations.changed(cifar10.get_config(), changes)


def test_seeds_are_different_numbers():
    assert ablations.seeds_of("2,0") == [2, 0]
    for text in ("0,x", "0,0", "1,01", "", "-1"):
        with pytest.raises(ConfigError, match="expected different whole numbers from 0 on"):
            ablations.seeds_of(text)


def test_a_training_with_other_options_is_not_taken_for_the_one_that_is_asked_for(tmp_path, monkeypatch):
    """Without a change it goes on, wherever its images lie now, and however it is logged."""
    config = digits.get_config()
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    (tmp_path / "config.json").write_text(to_json(config))
    asked = []
    monkeypatch.setattr(trainings, "train", lambda options, folder: asked.append(folder) or [])
    for change in ({}, {"data.root": "elsewhere", "log.every_steps": 7}):
        assert trainings.train_once(ablations.changed(config, change), tmp_path) == []
    assert asked == [tmp_path, tmp_path]
    for field, value in (("sandwich.loss", "labels"), ("optimizer.end_factor", 0.5), ("model.dropout", 0.3),
                         ("calibration.num_images", 7), ("data.val_split", "other")):  # fmt: skip
        with pytest.raises(ConfigError, match=rf"other options \(config.{field}: .* -> .*{value}.*\): move it away"):
            trainings.train_once(ablations.changed(config, {field: value}), tmp_path)


def test_a_phase_with_other_options_is_seen(tmp_path, monkeypatch):
    phases = {"first": {"epochs": 2}}
    options = ablations.changed(digits.get_config(), {"phases": phases})
    folder = tmp_path / "phases" / "first"
    (folder / "checkpoints" / "3").mkdir(parents=True)
    (folder / "config.json").write_text(to_json(runs_of(options)["first"]))
    monkeypatch.setattr(trainings, "train", lambda options, folder: [])
    assert trainings.train_once(options, tmp_path) == []
    other = ablations.changed(options.to_dict(), {"optimizer.learning_rate": 0.7})
    with pytest.raises(ConfigError, match=r"phases.first holds a training with other options \(config.optimizer.learn"):
        trainings.train_once(other, tmp_path)


def test_differences_are_of_pairs_of_seeds():
    before, after = [[60.0, 50.0], [64.0, 50.0]], [[61.0, 49.0], [66.0, 49.0]]
    found = {ablations.AS_IT_IS: np.array(before), "other": np.array(after)}
    mean, error = ablations.differences(found)["other"]
    np.testing.assert_allclose(mean, [1.5, -1.0])
    np.testing.assert_allclose(error, [0.5, 0.0], atol=1e-12)
    single = {name: values[:1] for name, values in found.items()}
    assert np.isnan(ablations.differences(single)["other"][1]).all()


def test_it_trains_and_repeated_it_trains_nothing(tmp_path):
    command = [sys.executable, "benchmarks/ablations.py", "--quick", "--workdir", str(tmp_path / "lab"),
               "--json", str(tmp_path / "found.json")]  # fmt: skip
    shown = []
    for _ in range(2):
        done = forks.run(command, cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr[-2000:]
        shown.append([line for line in done.stdout.splitlines() if line.startswith(("variant", "as it is", "no dist"))])
    assert shown[0] == shown[1] and len(shown[0]) == 3
    names = {row["name"] for row in json.loads((tmp_path / "found.json").read_text())["results"]}
    assert names == {f"{which}, {name}" for which in ("MAX", "MIN") for name in ("as it is", "no distillation")}
    assert "going on from step 3 of 3" in done.stdout
    assert [path.name for path in (tmp_path / "lab").iterdir()] == ["quick"]
