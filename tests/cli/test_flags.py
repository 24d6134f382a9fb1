"""The run's folder on the command line."""

import json

from bignas_jax.cli import flags
from bignas_jax.config.recipes import load_recipe


def runs(tmp_path):
    for seed, name in enumerate("ab", 1):
        config = load_recipe().to_dict() | {"seed": seed}
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    return [str(tmp_path / name) for name in "ab"]


def test_the_last_workdir_gives_both_the_config_and_the_weights(tmp_path):
    first, second = runs(tmp_path)
    options, found = flags.parse(["eval.py", "--workdir", first, f"--workdir={second}"], "", of_run=True)
    assert (found.workdir, options.seed) == (second, 2)


def test_a_workdir_in_a_flagfile_counts_too(tmp_path):
    first, _ = runs(tmp_path)
    (tmp_path / "flags.txt").write_text(f"--workdir={first}\n")
    options, found = flags.parse(["eval.py", f"--flagfile={tmp_path / 'flags.txt'}"], "", of_run=True)
    assert (found.workdir, options.seed) == (first, 1)
