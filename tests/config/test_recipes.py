"""Recipes: found, and importing each other, from any folder and however the package is installed."""

import os
import shutil
import subprocess
import sys

import pytest
from paths import ROOT

from bignas_jax.config.recipes import RECIPES, load_recipe
from bignas_jax.errors import ConfigError

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
