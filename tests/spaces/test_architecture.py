"""The architecture as a value: its JSON form, and what it refuses."""

import dataclasses
import json

import pytest

from bignas_jax.spaces.architecture import Architecture

VALUES = {"resolution": 224, "width": [32, 16, 24, 1280], "kernel_size": [3, 5], "expand_ratio": [1, 6],
          "depth": [1, 2]}


def test_json_is_the_form_of_the_field():
    arch = Architecture(224, (32, 16, 24, 1280), (3, 5), (1, 6), (1, 2))
    assert json.loads(arch.to_json()) == VALUES
    assert Architecture.from_json(json.dumps(VALUES)) == arch


def test_an_entry_may_list_its_blocks():
    arch = Architecture.from_dict({**VALUES, "kernel_size": [3, [5, 3]]})
    assert arch.kernel_size == (3, (5, 3))
    assert Architecture.from_json(arch.to_json()) == arch


def test_it_is_frozen_and_hashable():
    arch = Architecture.from_dict(VALUES)
    assert len({arch, Architecture.from_dict(VALUES)}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        arch.resolution = 192


@pytest.mark.parametrize("change, words", [
    ({"resolution": "224"}, "resolution: found '224', expected an integer"),
    ({"resolution": True}, "resolution: found True"),
    ({"resolution": 224.0}, "resolution: found 224.0"),
    ({"width": [32, 16, 0, 1280]}, r"width\[2\]: found 0"),
    ({"width": 32}, "width: found 32, expected a list"),
    ({"width": [32, 16]}, "width: found 2 entries, expected 4 .*, or 3 without a head"),
    ({"kernel_size": [3]}, "kernel_size: found 1 entries, expected 2"),
    ({"expand_ratio": [1, 6, 6]}, "expand_ratio: found 3 entries, expected 2"),
    ({"expand_ratio": [1, 0.0]}, r"expand_ratio\[1\]: found 0.0, expected a number > 0"),
    ({"expand_ratio": [1, [6, float("nan")]]}, r"expand_ratio\[1\]\[1\]: found nan, expected a number > 0"),
    ({"kernel_size": [3, [5]]}, r"kernel_size\[1\]: found 1 entries, expected 2"),
    ({"kernel_size": [3, [5, "3"]]}, r"kernel_size\[1\]\[1\]: found '3'"),
    ({"depth": []}, "depth: found no entry"),
    ({"colour": 1}, "unknown keys colour"),
])
def test_malformed_values_are_named(change, words):
    with pytest.raises(ValueError, match=words) as error:
        Architecture.from_dict({**VALUES, **change})
    assert "\n" not in str(error.value)


def test_missing_keys_are_named():
    values = {name: value for name, value in VALUES.items() if name not in ("depth", "width")}
    with pytest.raises(ValueError, match="missing keys width, depth"):
        Architecture.from_dict(values)


@pytest.mark.parametrize("text, words", [("{", "not valid JSON"), ("[1]", r"found \[1\], expected an obj")])
def test_text_that_is_no_architecture(text, words):
    with pytest.raises(ValueError, match=words):
        Architecture.from_json(text)
