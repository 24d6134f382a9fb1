"""The options by group: the one place of every field, against the fields as they were recorded before."""

import dataclasses
import json
import pickle
import subprocess
import sys
import typing

import pytest
from ml_collections import ConfigDict
from paths import ROOT

from bignas_jax.config import base
from bignas_jax.config.choices import Costs
from bignas_jax.config.declare import Group
from bignas_jax.config.fields import BUDGETS, FIELDS, canonical, flat, validate
from bignas_jax.config.files import to_json
from bignas_jax.config.options import Augment, Data, Model, Optimizer, Options, Sandwich, Search, declared
from bignas_jax.errors import ConfigError
from bignas_jax.spaces.mobilenet import SearchSpace
from configs import attentive_nas, bignas, cifar10, digits

# Written from the tables of fields and of defaults that the dataclasses took the place of.
RECORDED = json.loads((ROOT / "tests" / "data" / "fields.json").read_text())
RECIPES = (attentive_nas, bignas, cifar10, digits)


def exact(recipe) -> ConfigDict:
    config = canonical(recipe.get_config())
    validate(config)
    return config


def is_group(kind) -> bool:
    return isinstance(kind, type) and issubclass(kind, Group)


def groups() -> list[type]:
    found = [Options]
    for group in found:  # grows as it is walked
        found += [option.type for option in dataclasses.fields(group) if is_group(option.type)]
    return found


def test_fields_have_the_recorded_names_types_words_and_order():
    found = {name: (field.kind.__name__, field.expected) for name, field in FIELDS.items()}
    expected = {name: (record["type"], record["words"]) for name, record in RECORDED.items()}
    assert list(found.items()) == list(expected.items())


def test_base_has_the_recorded_defaults_and_those_of_the_dataclasses():
    found = flat(base())
    recorded = {name: record["default"] for name, record in RECORDED.items() if "default" in record}
    listed = {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}
    assert listed == recorded
    assert all(type(listed[name]) is type(value) for name, value in recorded.items())
    given = {name: default for name, _, default in declared() if default is not dataclasses.MISSING}
    assert found == given


def test_every_option_is_a_field_a_group_the_space_or_the_phases():
    for group in groups():
        for option in dataclasses.fields(group):
            if option.name not in ("space", "phases") and not is_group(option.type):
                field = option.metadata["field"]
                assert field.kind is (typing.get_origin(option.type) or option.type), (group, option.name)
                assert field.expected and callable(field.ok), (group, option.name)
    assert len(groups()) == 13


def test_groups_are_named_as_they_stand_in_a_config():
    def walk(group, prefix):
        assert group.prefix == prefix
        for option in dataclasses.fields(group):
            if is_group(option.type):
                walk(option.type, f"{prefix}{option.name}.")

    walk(Options, "")


def test_every_default_is_possible():
    for name, field, default in declared():
        assert default is dataclasses.MISSING or field.holds(default), name


@pytest.mark.parametrize("recipe", RECIPES)
def test_options_hold_what_the_config_holds(recipe):
    config = exact(recipe)
    options = Options.of(config)
    assert options.to_dict() == config.to_dict()
    assert json.dumps(options.to_dict(), indent=2) + "\n" == to_json(config)
    assert SearchSpace.from_config(options.space) == SearchSpace.from_config(config.space)
    assert options.data.augment.crop_scale == config.data.augment.crop_scale
    assert Options.of(options.to_dict()) == options


def test_lists_and_integers_become_tuples_and_floats():
    values = exact(digits).to_dict()
    values["data"]["mean"], values["optimizer"]["learning_rate"] = [0, 1, 0], 1
    values["space"]["resolution"] = [16]
    options = Options.of(values)
    assert options.data.mean == (0.0, 1.0, 0.0) and isinstance(options.data.mean[0], float)
    assert isinstance(options.optimizer.learning_rate, float) and options.space["resolution"] == (16,)


def test_options_and_their_groups_cannot_change():
    options = Options.of(exact(digits))
    for owner, name in ((options, "seed"), (options.model, "dropout"), (options.data.augment, "flip")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(owner, name, 1)


def test_groups_are_values():
    options = Options.of(exact(digits))
    again = pickle.loads(pickle.dumps(options))
    assert again == options and hash(again.data) == hash(options.data)
    assert dataclasses.replace(options.search, seed=1) != options.search


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: Optimizer(name="adam"), "config.optimizer.name: found 'adam', expected one of sgd, rmsprop, adamw"),
        (lambda: Optimizer(schedule="step"), "config.optimizer.schedule: found 'step', expected one of exponential, c"),
        (lambda: Sandwich(num_random=-1), "config.sandwich.num_random: found -1, expected an integer >= 0 and < 1000"),
        (lambda: Search(cost="flops"), "config.search.cost: found 'flops', expected one of macs, params, latency_ms"),
        (lambda: Model(num_classes=True), "config.model.num_classes: found True, expected an integer >= 2 and < 2**31"),
        (
            lambda: dataclasses.replace(Augment.of(digits.get_config().data.augment), policy="auto"),
            "config.data.augment.policy: found 'auto', expected one of none, imagenet, cifar10, svhn, rand",
        ),
    ],
)
def test_a_group_refuses_what_a_config_may_not_hold(build, message):
    with pytest.raises(ConfigError) as error:
        build()
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("name", [name for name, record in RECORDED.items() if "default" not in record])
def test_what_a_recipe_has_to_give_has_no_default(name):
    values = exact(digits).to_dict()
    *path, last = name.split(".")
    owner = values
    for part in path:
        owner = owner[part]
    del owner[last]
    with pytest.raises(ConfigError, match=f"^config.{name}: found nothing, expected"):
        Options.of(values)


def test_the_space_has_to_be_given():
    values = exact(digits).to_dict()
    del values["space"]
    with pytest.raises(ConfigError, match="^config.space: found nothing, expected the choices of a search space"):
        Options.of(values)


def test_unknown_fields_are_refused():
    values = exact(digits).to_dict()
    values["data"]["augment"]["blur"] = 0.2
    with pytest.raises(ConfigError, match="^config.data.augment.blur: found an unknown field"):
        Options.of(values)


def test_a_group_alone_is_made_from_its_part():
    part = digits.get_config().data
    assert Data.of(part).to_dict() == part.to_dict()


def test_each_kind_of_cost_has_its_budgets():
    search = Search(max_params=(1e5,))
    assert search.limits() == {"macs": (), "params": (1e5,), "latency_ms": (), "own": ()}
    assert BUDGETS[:4] == ("search.max_macs", "search.max_params", "search.max_latency_ms", "search.max_own")
    assert BUDGETS[4:] == ("search.min_macs", "search.min_params", "search.min_latency_ms", "search.min_own")
    both = Search(cost="params,own", min_latency_ms=(2.0,))
    assert both.costs == ("params", "own") and [cost for cost in Costs if both.uses(cost)] == [
        Costs.PARAMS, Costs.LATENCY_MS, Costs.OWN]  # fmt: skip


def test_options_need_no_jax():
    code = "import bignas_jax.config.options, sys; print({'jax', 'torch'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"
