"""Names of architectures on the command line."""

import dataclasses

from tiny import tiny_space

from bignas_jax.spaces.naming import read_architectures

SPACE = tiny_space()


def test_a_file_called_max_does_not_stand_for_the_biggest(tmp_path):
    other = dataclasses.replace(SPACE.smallest, resolution=SPACE.biggest.resolution)
    (tmp_path / "MAX.json").write_text(other.to_json())
    for names in ([str(tmp_path / "MAX.json"), "max"], ["max", str(tmp_path / "MAX.json")]):
        assert read_architectures(SPACE, names) == {"MAX": SPACE.biggest, "MAX-2": other}


def test_two_names_of_one_architecture_are_two(tmp_path):
    (tmp_path / "mine.json").write_text(SPACE.biggest.to_json())
    found = read_architectures(SPACE, ["max", str(tmp_path / "mine.json")])
    assert found == {"MAX": SPACE.biggest, "mine": SPACE.biggest}
