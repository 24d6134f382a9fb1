"""Configs and the command line: what is accepted, and that every refusal is one line that names the field."""

import copy

import pytest
from absl import flags as absl_flags
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from bignas_jax.cli import flags
from bignas_jax.config import fields as config_lib
from bignas_jax.config.files import differences, from_json, to_json, with_defaults
from bignas_jax.errors import ConfigError
from configs import attentive_nas, bignas, cifar10, digits

RECIPES = (attentive_nas, bignas, cifar10, digits)


def changed(path, value):
    config = digits.get_config().to_dict()
    *owners, last = path.split(".")
    owner = config
    for name in owners:
        owner = owner[name]
    owner[last] = value
    return ConfigDict(config)


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_are_valid_and_complete(recipe):
    config = recipe.get_config()
    config_lib.validate(config)
    names = {name for name in config_lib.flat(config) if not name.startswith("space.")}
    assert names == set(config_lib.FIELDS)


@pytest.mark.parametrize("recipe", RECIPES)
def test_json_gives_the_config_back(recipe):
    config = config_lib.canonical(recipe.get_config()).lock()
    again = from_json(to_json(config))
    assert again == config
    assert isinstance(again.space.resolution, tuple) and isinstance(again.data.mean, tuple)
    assert differences(config, again) == []
    with pytest.raises(AttributeError):
        again.no_such_field = 1


IMPOSSIBLE = [
    ("seed", -1), ("seed", 1.0), ("seed", True), ("batch_size", 0), ("batch_size", "64"), ("epochs", 0),
    ("model.num_classes", 1), ("model.dropout", 1.0), ("model.drop_connect", -0.1),
    ("model.dtype", "float16"), ("model.sync_batch_norm", 1), ("data.source", "no such"),
    ("data.train_split", ""), ("data.image_column", 3), ("data.label_column", None), ("data.image_size", 0),
    ("data.mean", (0.5, 0.5)),
    ("data.mean", (0.5, 0.5, 127.0)), ("data.mean", 0.5), ("data.std", (0.2, 0.0, 0.2)),
    ("data.std", (0.2, True, 0.2)), ("data.num_workers", -1), ("data.holdout", -1),
    ("data.on_corrupt", "stop"), ("data.max_pixels", 0), ("data.augment.crop", "random"),
    ("data.augment.crop_scale", (0.5, 0.1)),
    ("data.augment.crop_scale", (0.0, 1.0)), ("data.augment.crop_ratio", (2.0, 1.0)),
    ("data.augment.padding", -1), ("data.augment.flip", 1.5), ("data.augment.policy", "auto"),
    ("data.augment.rand_magnitude", 31), ("data.augment.color_jitter", (0.1, 0.1, 0.1, 0.6)),
    ("data.augment.erasing", 1.5),
    ("data.augment.mixup", -0.1),
    ("log.wandb", "on"), ("log.mlflow", 5000), ("log.project", " "), ("search.quantized", 1),
    ("data.augment.cutmix", "yes"),
    ("sandwich.num_random", -1), ("sandwich.label_smoothing", 1.0), ("sandwich.members", "attentive"),
    ("sandwich.candidates", 0), ("sandwich.budget_macs", -25e6), ("sandwich.uniform_budgets", 1),
    ("sandwich.predictor", 3),
    ("teacher.source", 1), ("teacher.arch", ""), ("teacher.checkpoint", "last"), ("teacher.weight", 0.0),
    ("teacher.label_weight", -1.0), ("sandwich.loss", "hinge"), ("sandwich.student_weight", 0.0),
    ("sandwich.student_ramp", 1.5), ("sandwich.student_start", 1.0), ("optimizer.name", "adam"),
    ("optimizer.learning_rate", 0.0), ("optimizer.learning_rate", float("nan")),
    ("optimizer.learning_rate", float("inf")), ("optimizer.schedule", "step"), ("optimizer.decay_rate", 1.1),
    ("optimizer.decay_epochs", 0.0), ("optimizer.staircase", None), ("optimizer.end_factor", 2.0),
    ("optimizer.warmup_epochs", -1.0), ("optimizer.momentum", 1.0), ("optimizer.rmsprop_decay", 0.0),
    ("optimizer.rmsprop_eps", 0.0), ("optimizer.adam_decay", 1.0), ("optimizer.adam_eps", 0.0),
    ("optimizer.weight_decay", -1e-5), ("optimizer.clip_norm", -1.0),
    ("optimizer.ema_decay", 1.0), ("calibration.batch_size", 0), ("evaluation.batch_size", 0),
    ("evaluation.every_epochs", 0.0), ("search.strategy", "grid"), ("search.seed", -1), ("search.num_evaluations", 0),
    ("search.max_macs", (3e8, 0.0)), ("search.max_macs", 3e8), ("search.max_params", (-1,)),
    ("search.min_macs", (0.0,)), ("search.min_params", 1e5), ("search.min_latency_ms", (-2.0,)),
    ("calibration.biased_variance", 2), ("model.zero_gammas", 1), ("sandwich.regularised", "none"),
    ("optimizer.clip_value", -1.0), ("sandwich.resolve_conflicts", "yes"),
    ("sandwich.resolve_conflicts_after", -1),
    ("search.max_latency_ms", ("fast",)), ("search.max_resolution", -1), ("search.cost", "flops"),
    ("search.population", 1), ("search.mutation_probability", 1.5), ("search.first_part", 0.0),
    ("search.confidence", -1.0), ("search.calibration_images", -1), ("search.preview", 1), ("search.predictor", 1),
    ("search.predictor_pool", 1), ("search.predictor_min_tau", 2.0), ("search.latency_batch_size", 0),
    ("search.latency_table", 1), ("search.max_own", (0.0,)),
    ("search.min_own", 2.0), ("search.own_cost", "mine"), ("search.cost", "macs,macs"), ("search.cost", ""),
    ("search.cost", "macs,params,latency_ms,own"), ("search.resident_gb", -1.0),
    ("checkpoint.every_steps", 0), ("checkpoint.keep", 0),
    ("checkpoint.on_damage", "ignore"), ("on_collapse", "wait"),
    ("log.every_steps", 0), ("log.images", -1), ("max_nonfinite_steps", 0),
    ("distributed.coordinator", "host"), ("distributed.num_processes", 0), ("num_devices", -1),
    ("max_steps", -1), ("remat", "no"), ("micro_batches", 0), ("deterministic", 1), ("arch", 3),
    ("init_checkpoint", "last"),
    ("init_from", 3), ("space.resolution", (3, 16)), ("space.stages.mb2.depth", (2, 1)),
    ("space.activation", "gelu"),
    # At odds with another field.
    ("optimizer.name", "rmsprop", "optimizer.nesterov"), ("optimizer.warmup_epochs", 30.0),
    ("data.eval_resize", 15), ("calibration.num_images", 64), ("data.augment.padding", 0),
    ("distributed.process_id", 1), ("distributed.num_processes", 2, "distributed.coordinator"),
    ("num_devices", 5, "batch_size"), ("search.cost", "macs,own", "search.own_cost"),
    ("search.max_own", (1.0,), "search.own_cost"), ("search.min_own", (1.0,), "search.own_cost"),
    ("micro_batches", 5, "micro_batches"),
]


@pytest.mark.parametrize("path, value, named", [(case[0], case[1], case[-1] if len(case) == 3 else case[0])
                                                for case in IMPOSSIBLE])
def test_impossible_values_are_refused_by_field(path, value, named):
    with pytest.raises(ConfigError) as error:
        config_lib.validate(changed(path, value))
    message = str(error.value)
    assert message.startswith(f"config.{named}: found ") and "expected" in message and "\n" not in message


def test_students_that_would_rise_beyond_the_end_are_refused():
    config = changed("sandwich.student_ramp", 0.7)
    config.sandwich.student_start = 0.3
    config_lib.validate(config)  # whose sum is 1, but for its rounding
    config.sandwich.student_start = 0.4
    expected = r"^config.sandwich.student_ramp: found 0.7, expected at most what sandwich.student_start leaves \(0.6\)$"
    with pytest.raises(ConfigError, match=expected):
        config_lib.validate(config)


def test_budgets_of_other_numbers_are_refused():
    config = changed("search.max_macs", (1e6, 2e6))
    config.search.max_params = (1e5,)
    config_lib.validate(config)
    config.search.max_latency_ms = (1.0, 2.0, 3.0)
    with pytest.raises(ConfigError, match=r"^config.search.max_macs: found .* expected one value, or 3"):
        config_lib.validate(config)


def test_a_config_that_is_older_than_a_field_gets_its_default():
    config = digits.get_config()
    values = config.to_dict()
    del values["search"]["cost"], values["log"]["images"], values["remat"]
    assert with_defaults(ConfigDict(values)) == config


def test_every_field_refuses_something_that_this_file_tries():
    tried = {case[0] for case in IMPOSSIBLE} | {"data.root", "data.val_split", "data.augment.rand_ops"}
    assert set(config_lib.FIELDS) - tried - {"optimizer.nesterov"} == set()
    for path in ("data.root", "data.val_split", "data.augment.rand_ops", "optimizer.nesterov"):
        with pytest.raises(ConfigError, match=f"config.{path}: found None"):
            config_lib.validate(changed(path, None))


def test_rand_augment_needs_operations():
    config = changed("data.augment.policy", "rand")
    config_lib.validate(config)
    config.data.augment.rand_ops = 0
    with pytest.raises(ConfigError, match="config.data.augment.rand_ops: found 0"):
        config_lib.validate(config)


@pytest.mark.parametrize("name", [*config_lib.FIELDS, "space", "space.resolution", "space.stages.mb1.se"])
def test_missing_fields_are_named(name):
    config = digits.get_config()
    *owners, last = name.split(".")
    owner = config
    for part in owners:
        owner = owner[part]
    del owner[last]
    with pytest.raises(ConfigError, match=f"^config.{name}: found nothing, expected"):
        config_lib.validate(config)


def test_unknown_fields_are_named_with_the_nearest():
    with pytest.raises(ConfigError) as error:
        config_lib.validate(changed("optimizer.learnig_rate", 0.1))
    assert str(error.value) == ("config.optimizer.learnig_rate: found an unknown field,"
                                " did you mean config.optimizer.learning_rate?")


def test_integers_and_lists_are_taken_for_numbers_and_tuples():
    config = changed("optimizer.learning_rate", 1)
    config.data.mean = (0, 1, 0)
    config = ConfigDict({**config.to_dict(), "data": {**config.data.to_dict(), "std": [1, 1, 1]}})
    config_lib.validate(config)
    exact = config_lib.canonical(config)
    assert isinstance(exact.optimizer.learning_rate, float)
    assert exact.data.mean == (0.0, 1.0, 0.0) and isinstance(exact.data.mean[0], float)
    assert exact.data.std == (1.0, 1.0, 1.0) and isinstance(exact.data.std, tuple)
    assert exact.seed == 0 and isinstance(exact.seed, int)


@given(st.sampled_from(sorted(config_lib.FIELDS)), st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5),
    st.lists(st.floats(), max_size=4).map(tuple)))
def test_any_value_is_accepted_or_refused_in_one_line(path, value):
    try:
        config_lib.validate(changed(path, value))
    except ConfigError as error:
        assert str(error).startswith("config.") and len(str(error).splitlines()) == 1


def test_differences_show_both_sides():
    old = digits.get_config()
    new = copy.deepcopy(old)
    new.optimizer.momentum = 0.8
    new.space.stages.mb1.width = (8,)
    del new["remat"]
    assert sorted(differences(old, new)) == [
        "config.optimizer.momentum: 0.9 -> 0.8", "config.remat: False -> absent",
        "config.space.stages.mb1.width: (8, 16) -> (8,)"]


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_text_that_is_no_config(text):
    with pytest.raises(ConfigError, match="config: "):
        from_json(text)


def define_extra(values):
    absl_flags.DEFINE_multi_string("arch", ["max", "min"], "architectures", flag_values=values)
    absl_flags.DEFINE_enum("split", "val", ["val", "holdout", "train"], "images", flag_values=values)


def test_the_default_is_digits():
    options, found = flags.parse(["train.py"], "doc")
    assert differences(options, config_lib.canonical(digits.get_config())) == []
    assert found.workdir == "exp/digits" and found.config_path.endswith("configs/digits.py")


@pytest.mark.parametrize("form", [["--config", "configs/cifar10.py"], ["--config=configs/cifar10.py"]])
def test_recipes_are_found_from_any_folder(form, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options, found = flags.parse(["train.py", *form], "doc")
    assert options.data.root == "data/cifar10" and found.workdir == "exp/cifar10"


def test_overrides_and_extra_flags():
    options, found = flags.parse(
        ["eval.py", "--config.optimizer.learning_rate=1", "--config.space.resolution=(12,)", "--config.seed",
         "5", "--noconfig.optimizer.nesterov", "--config.data.root=/x", "--arch=a.json", "--arch", "b.json",
         "--split=train", "--workdir=w", "--config.space.stages.mb2.kernel_size=(3,)"], "doc", define_extra)
    assert options.optimizer.learning_rate == 1.0 and isinstance(options.optimizer.learning_rate, float)
    assert options.space["resolution"] == (12,) and options.seed == 5 and options.optimizer.nesterov is False
    assert options.space["stages"]["mb2"]["kernel_size"] == (3,) and options.data.root == "/x"
    assert (found.arch, found.split, found.workdir) == (["a.json", "b.json"], "train", "w")
    _, again = flags.parse(["eval.py"], "doc", define_extra)
    assert (again.arch, again.split) == (["max", "min"], "val")


def refusal(argv, capsys, extra=None):
    with pytest.raises(SystemExit) as error:
        flags.parse(["some/where/train.py", *argv], "doc", extra)
    assert error.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and captured.err.startswith("train.py: ")
    return captured.err.removeprefix("train.py: ").rstrip("\n")


@pytest.mark.parametrize("argument, words", [
    ("--config.optimizer.learnin_rate=1",
     "config.optimizer.learnin_rate: found an unknown field, did you mean config.optimizer.learning_rate?"),
    ("--config.zzz=1", "config.zzz: found an unknown field"),
    ("--config.space.stages.mb2.sse=1", "config.space.stages.mb2.sse: found an unknown field"),
    ("--config.optimizer=1", "config.optimizer: found a value for a group"),
    ("--config.batch_size=1.5", "config.batch_size: found '1.5', expected an integer >= 1 and < 2**31"),
    ("--config.batch_size=", "config.batch_size: found '', expected an integer >= 1 and < 2**31"),
    ("--config.optimizer.learning_rate=fast", "config.optimizer.learning_rate: found 'fast', expected a"),
    ("--config.optimizer.learning_rate=-0.1", "config.optimizer.learning_rate: found -0.1, expected a"),
    ("--config.model.sync_batch_norm=maybe", "config.model.sync_batch_norm: found 'maybe', expected True"),
    ("--config.data.mean=0.5 0.5 0.5", "config.data.mean: found '0.5 0.5 0.5', expected three numbers"),
    ("--config.data.mean=(1,2)", "config.data.mean: found (1, 2), expected three numbers"),
    ("--config.space.resolution=(16,12)", "config.space.resolution: found (16, 12)"),
    ("--config.space.stages.mb2.stride=x", "config.space.stages.mb2.stride: found 'x', expected a"),
    ("--config.seed", "Missing value for flag --config.seed"),
    ("--workdri=x", "Unknown command line flag 'workdri'"),
    ("--split=test", "flag --split=test"),
    ("stray", "found the argument 'stray'"),
    ("--config=nowhere.py", "--config: found no file 'nowhere.py', expected a path such as configs/att"),
    ("--config", "--config: found no value"),
])
def test_mistakes_end_in_one_line(argument, words, capsys):
    assert refusal([argument], capsys, define_extra).startswith(words)


@pytest.mark.parametrize("text, words", [
    ("def get_config():\n    x = 1\n    return wrong\n", ":3: NameError"),
    ("def get_config(:\n", ":1: SyntaxError"),
    ("from bignas_jax.config import base\n\ndef get_config():\n    base().seed = 'x'\n", ":4: TypeError"),
    ("from bignas_jax.config import base\n\ndef get_config():\n    base().no.such = 1\n", ":4: Attribute"),
    ("import no_such_module\n", ":1: ModuleNotFoundError"),
    ("x = 1\n", ": found no get_config()"),
    ("def get_config():\n    return {}\n", ": get_config() returned dict, expected a ConfigDict"),
])
def test_mistakes_in_a_config_file_show_file_and_line(text, words, tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text(text)
    assert refusal([f"--config={path}"], capsys).startswith(f"{path}{words}")


def test_an_incomplete_config_file_is_refused(tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text("from bignas_jax.config import base as get_config\n")
    assert refusal([f"--config={path}"], capsys).startswith("config.model.num_classes: found nothing")


def test_help_shows_the_doc_the_flags_and_the_fields(capsys):
    with pytest.raises(SystemExit) as error:
        flags.parse(["eval.py", "--help"], "What it does.", define_extra)
    assert error.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith("What it does.\n")
    for part in ("--workdir", "--split", "--config.optimizer.learning_rate=0.1  (a number > 0)",
                 "--config.space.stages.mb1.width=(8, 16)"):
        assert part in out
