"""Recipes: found, and importing each other, from any folder and however the package is installed."""

import os
import shutil
import subprocess
import sys

import pytest
from paths import ROOT

from bignas_jax.config.options import Options
from bignas_jax.config.phases import runs_of
from bignas_jax.config.recipes import RECIPES, load_recipe
from bignas_jax.errors import ConfigError
from bignas_jax.spaces.registry import space_of

MINE = "from bignas_jax.config import base\nfrom configs import digits\n\nbase, get_config = base, digits.get_config\n"
LOAD = "import sys, bignas_jax; print(bignas_jax.load_config(sys.argv[1]).data.source, 'jax' in sys.modules)"


@pytest.fixture(scope="module", params=["installed", "editable"])
def site(request, tmp_path_factory):
    """A folder of packages with bignas_jax in it: copied with its recipes, or a link into the checkout."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "editable":
        (folder / "bignas_jax").symlink_to(ROOT / "bignas_jax")
    else:
        shutil.copytree(ROOT / "bignas_jax", folder / "bignas_jax")
        shutil.copytree(ROOT / "configs", folder / "bignas_jax" / "recipes")
    return folder


def load(site, folder, recipe):
    """The source of the data of a recipe, as a process that runs in `folder` reads it, or its complaint."""
    environment = os.environ | {"PYTHONPATH": str(site)}
    command = [sys.executable, "-c", LOAD, recipe]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    return done.stdout.strip() or done.stderr


def test_the_packages_recipes_are_found_in_an_empty_folder(site, tmp_path):
    assert load(site, tmp_path, "configs/child.py") == "folder False"


def test_a_recipe_of_ones_own_imports_the_packages(site, tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    assert load(site, tmp_path, "mine.py") == "digits False"


@pytest.mark.parametrize("is_package", [False, True])
def test_a_folder_configs_of_ones_own_hides_only_what_it_has(site, tmp_path, is_package):
    own = tmp_path / "configs"
    own.mkdir()
    if is_package:
        (own / "__init__.py").write_text("")
    (own / "mine.py").write_text(MINE)
    assert load(site, tmp_path, "configs/mine.py") == "digits False"
    assert load(site, tmp_path, "configs/child.py") == "folder False"
    (own / "digits.py").write_text("from configs.cifar10 import get_config\n")
    assert load(site, tmp_path, "configs/mine.py") == "folder False"


def test_a_recipe_that_is_older_than_a_field_gets_its_default(tmp_path):
    recipe = tmp_path / "old.py"
    recipe.write_text("from configs import digits\n\ndef get_config():\n    config = digits.get_config()\n"
                      "    del config.data.max_pixels\n    return config\n")  # fmt: skip
    assert load_recipe(recipe).data.max_pixels == 178_956_970
    recipe.write_text(recipe.read_text().replace("del config.data.max_pixels", "del config.data\n    config.data = 3"))
    with pytest.raises(ConfigError, match="^config.data: "):
        load_recipe(recipe)


@pytest.mark.parametrize("name", sorted(file.name for file in RECIPES.glob("ofa*.py")))
def test_once_for_alls_recipes_are_checked(name):
    config = load_recipe(f"configs/{name}")
    assert config.space.family == ("resnet" if "resnet" in name else "ofa") and config.is_locked


# Of mit-han-lab/once-for-all's train_ofa_net.py: epochs with warm-up, warm-up, learning rate on 32 GPUs, slices a step,
# kernels, ratios and depths; before them the full network as nnabla-nas (epochs) and issue 32 (learning rate) have it.
SHRINKING = [
    (185, 5, 2.6, 1, {7}, {6}, {4}),
    (125, 5, 32 * 3e-2, 1, {3, 5, 7}, {6}, {4}),
    (25, 0, 32 * 2.5e-3, 2, {3, 5, 7}, {6}, {3, 4}),
    (125, 5, 32 * 7.5e-3, 2, {3, 5, 7}, {6}, {2, 3, 4}),
    (25, 0, 32 * 2.5e-3, 4, {3, 5, 7}, {4, 6}, {2, 3, 4}),
    (125, 5, 32 * 7.5e-3, 4, {3, 5, 7}, {3, 4, 6}, {2, 3, 4}),
]


@pytest.mark.parametrize("name", ["ofa_mbv3_shrinking", "ofa_mbv3_w12_shrinking", "ofa_proxyless_shrinking"])
def test_progressive_shrinking_is_that_of_its_authors(name):
    runs = list(runs_of(Options.of(load_recipe(f"configs/{name}.py"))).values())
    for run, (epochs, warmup, rate, slices, *values) in zip(runs, SHRINKING, strict=True):
        assert (run.epochs, run.optimizer.warmup_epochs, run.sandwich.num_random) == (epochs, warmup, slices)
        assert run.optimizer.learning_rate == pytest.approx(rate) and run.batch_size == 32 * 64
        assert run.sandwich.members == "slices" and (run.teacher.source == "phase:p0_full") == (run is not runs[0])
        choices = [choice for choice in space_of(run.space).choices if choice.part == "mb2"]
        for kind, expected in zip(("kernel_size", "expand_ratio", "depth"), values, strict=True):
            assert all(set(choice.values) == expected for choice in choices if choice.kind == kind)


def test_the_widths_of_a_resnet_come_last():
    runs = list(runs_of(Options.of(load_recipe("configs/ofa_resnet50_shrinking.py"))).values())
    opened = [[len(choice) for choice in space_of(run.space).choices if choice.part == "rb3"] for run in runs]
    found = [(width, depth, ratio) for width, depth, _, *_, ratio in opened]
    assert found == [(1, 1, 1), (1, 3, 1), (1, 3, 2), (1, 3, 3), (2, 3, 3), (3, 3, 3)]
    assert sum(run.epochs for run in runs) == 185 + 125 + 2 * (25 + 125)
