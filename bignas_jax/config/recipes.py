"""Recipes: Python files whose `get_config()` returns a config."""

import importlib.machinery
import importlib.util
import sys
import traceback
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

from ml_collections import ConfigDict

from bignas_jax.config.fields import canonical, validate
from bignas_jax.config.files import with_defaults
from bignas_jax.errors import ConfigError

PACKAGE = Path(__file__).resolve().parents[1]
# In a checkout the recipes lie beside the package. In an installed package they are a part of it.
INSTALLED = PACKAGE / "recipes"
RECIPES = INSTALLED if INSTALLED.is_dir() else PACKAGE.parent / "configs"
ROOT = PACKAGE.parent
DEFAULT_CONFIG = "configs/digits.py"


def find_config(path: str) -> Path:
    """The config file at `path`: from the current folder, from the repository, or among the package's own recipes.

    Raises:
      ConfigError: there is no such file.
    """
    own = [RECIPES / Path(path).name] if Path(path).parent == Path("configs") else []
    for candidate in (Path(path), ROOT / path, *own):
        if candidate.is_file():
            return candidate
    recipes = sorted(f"configs/{file.name}" for file in RECIPES.glob("[!_]*.py"))
    raise ConfigError(f"--config: found no file {path!r}, expected a path such as {', '.join(recipes)}")


def load_config(path: Path) -> ConfigDict:
    """The config that `get_config()` of the file at `path` returns, not validated. Fields that it lacks get defaults.

    Raises:
      ConfigError: the file fails (the message has its name and line), or has no `get_config()` that returns a
        ConfigDict.
    """
    _let_recipes_import_each_other()
    name = f"bignas_jax_config_{path.stem}"
    loader = importlib.machinery.SourceFileLoader(name, str(path))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
    try:
        loader.exec_module(module)
        config = _get_config(module, path)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{_where(error, path)}: {type(error).__name__}: {error}") from error
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"{path}: get_config() returned {type(config).__name__}, expected a ConfigDict")
    return with_defaults(config)


class _Recipes:
    """Finds `configs` and its modules among RECIPES, if no finder before it in `sys.meta_path` has found them.

    So a user's own folder `configs` hides only recipes of the same names.
    """

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name == "configs":
            file = RECIPES / "__init__.py"
            return importlib.util.spec_from_file_location(name, file, submodule_search_locations=[str(RECIPES)])
        return PathFinder.find_spec(name, [str(RECIPES)]) if name.startswith("configs.") else None


def _let_recipes_import_each_other() -> None:
    """Makes `from configs import digits` work from any folder, whether the package is installed or a checkout."""
    if _Recipes not in sys.meta_path:
        sys.meta_path.append(_Recipes)


def _get_config(module: ModuleType, path: Path) -> ConfigDict:
    if not callable(getattr(module, "get_config", None)):
        raise ConfigError(f"{path}: found no get_config(), expected a function that returns a ConfigDict")
    return module.get_config()


def _where(error: Exception, path: Path) -> str:
    """File and line of a mistake in a config file."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == str(path)]
    frame = (own or frames)[-1]
    return f"{frame.filename}:{frame.lineno}"


def load_recipe(path: str | Path = DEFAULT_CONFIG) -> ConfigDict:
    """The config of a recipe, checked and locked.

    Args:
      path: the path of the file, such as 'configs/cifar10.py'. `find_config` looks for it.
    Raises:
      ConfigError: there is no such file, it fails, or the config cannot work; one line that names the field.
    """
    config = canonical(load_config(find_config(str(path))))
    validate(config)
    return canonical(config).lock()
