"""The runs of a schedule of phases, as configs: what each one is, and what is refused before any work."""

import pytest
from ml_collections import ConfigDict

from bignas_jax.config.fields import canonical, validate
from bignas_jax.config.files import from_json, to_json
from bignas_jax.config.options import Options
from bignas_jax.config.phases import runs_of
from bignas_jax.errors import ConfigError
from bignas_jax.spaces.registry import space_of
from configs import digits, ofa_mbv3_cifar10

FULL = dict(kernel_size=1, depth=1, expand_ratio=1)


def recipe(**phases):
    config = ofa_mbv3_cifar10.get_config()
    config.teacher.source, config.optimizer.warmup_epochs = "phase:p1_full", 0.5
    config.phases = ConfigDict(phases or dict(
        p10_depth=dict(largest=dict(expand_ratio=1, depth=2), epochs=2, sandwich=dict(members="slices", num_random=2)),
        p1_full=dict(largest=FULL, epochs=3, optimizer=dict(learning_rate=1, warmup_epochs=0)),
        p2_kernel=dict(largest=dict(depth=1, expand_ratio=1), epochs=4, max_steps=7),
    ))  # fmt: skip
    return canonical(config)


def options_of(config) -> Options:
    validate(config)
    return Options.of(config)


def test_each_phase_is_a_run_on_a_part_of_the_space():
    options = options_of(recipe())
    runs = runs_of(options)
    assert list(runs) == ["p1_full", "p2_kernel", "p10_depth", ""], "by the numbers in the names"
    spaces = {name: space_of(run.space) for name, run in runs.items()}
    whole = space_of(options.space)
    assert spaces["p1_full"].size == len(whole.resolutions) and spaces[""] == whole
    assert spaces["p2_kernel"] == whole.restricted(largest=dict(depth=1, expand_ratio=1))
    assert [stage.depth for stage in spaces["p10_depth"].stages][1:] == [(2, 3)] * 4
    assert [run.epochs for run in runs.values()] == [3, 4, 2, options.epochs]
    assert [run.max_steps for run in runs.values()] == [0, 7, 0, 0]
    assert [run.optimizer.learning_rate for run in runs.values()] == [1.0, 0.1, 0.1, 0.1]
    assert type(runs["p1_full"].optimizer.learning_rate) is float and runs["p1_full"].optimizer.warmup_epochs == 0
    assert [run.sandwich.members for run in runs.values()] == ["sandwich", "sandwich", "slices", "sandwich"]
    assert [run.init_from for run in runs.values()] == ["", "phase:p1_full", "phase:p2_kernel", "phase:p10_depth"]
    assert [run.teacher.source for run in runs.values()] == ["", *["phase:p1_full"] * 3], "no phase teaches itself"
    assert [bool(run.phases) for run in runs.values()] == [False, False, False, True]


def test_a_config_without_phases_is_one_run_and_says_nothing_of_them():
    options = options_of(canonical(digits.get_config()))
    assert runs_of(options) == {"": options} and "phases" not in options.to_dict()


def test_the_run_itself_is_read_back_from_its_folder():
    run = runs_of(options_of(recipe()))[""]
    again = from_json(to_json(run))
    validate(again)
    assert Options.of(again) == run


ONE = dict(largest=FULL, epochs=1)


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        (dict(p1=dict(largest=dict(depth=2), epochs=1), p2=ONE),
         r"phases\.p2\.largest: found fewer choices than in p1 \(stage mb1 depth: \(3,\), there \(2, 3\)\), expected"),
        (dict(p1=dict(largest=FULL)), r"phases\.p1\.epochs: found nothing, expected an integer >= 1"),
        (dict(p1=ONE | dict(epochs=0)), r"phases\.p1\.epochs: found 0, expected an integer >= 1"),
        (dict(p1=ONE | dict(optimiser=dict(momentum=0.5))), r"phases\.p1\.optimiser\.momentum: found an unknown field, "
         r"did you mean config\.phases\.p1\.optimizer\.momentum\?"),
        (dict(p1=ONE | dict(model=dict(num_classes=3))), r"phases\.p1\.model\.num_classes: found a field that all "
         r"phases share, expected it as config\.model\.num_classes alone"),
        (dict(p1=dict(largest=dict(kernels=1), epochs=1)), r"phases\.p1\.largest: found kernels, expected some of "),
        (dict(p1=dict(largest=dict(depth=0), epochs=1)),
         r"phases\.p1\.largest: found \{'depth': 0\}, expected numbers >= 1"),
        (dict(p1=dict(largest=3, epochs=1)), r"phases\.p1\.largest: found 3, expected numbers >= 1"),
        (dict(p1=3), r"phases\.p1: found 3, expected a group of fields"),
        ({"p-1": ONE}, r"phases\.p-1: found the name 'p-1', expected letters, digits and _"),
        (dict(p1=ONE | dict(optimizer=dict(warmup_epochs=2.0))),
         r"phases\.p1: with its fields, config\.optimizer\.warmup_epochs: found 2\.0, expected less than epochs \(1\)"),
        (dict(p1=ONE | dict(teacher=dict(source="phase:p1"))),
         r"phases\.p1\.teacher\.source: found 'phase:p1', expected an earlier phase \(none here\)"),
        (dict(p1=ONE), r"teacher\.source: found 'phase:p1_full', expected an earlier phase \(phase:p1\), a run's"),
    ],
)
def test_a_schedule_that_cannot_work_is_refused(phases, message):
    config = recipe(**phases)
    if "p1_full" not in message:
        config.teacher.source = ""
    with pytest.raises(ConfigError, match=rf"^config\.{message}") as error:
        validate(config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("phases", 3, r"^config\.phases: found 3, expected a mapping"),
        ("arch", "max", r"^config\.phases: found phases beside config\.arch"),
        ("init_checkpoint", "none", r"^config\.init_checkpoint: found 'none' with config\.phases"),
    ],
)
def test_what_phases_do_not_go_with_is_refused(field, value, message):
    config = recipe()
    del config[field]
    config[field] = value
    with pytest.raises(ConfigError, match=message):
        validate(config)
