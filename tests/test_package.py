"""The package as it is installed and imported."""

import re
import subprocess
import sys
import tomllib

import pytest
from paths import ROOT

import bignas_jax
from bignas_jax import count, load_config, load_space
from bignas_jax.errors import ConfigError

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def python(code):
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_it_imports_neither_jax_nor_torch():
    """Nor do the command line, the configs, the spaces, and what must run before JAX."""
    code = (
        "import sys, logging, bignas_jax, bignas_jax.cli.flags, bignas_jax.programs.memory, bignas_jax.__main__; "
        "bignas_jax.load_space(bignas_jax.load_config('configs/digits.py')); dir(bignas_jax); "
        "print([name for name in ('jax', 'flax', 'orbax', 'torch') if name in sys.modules])"
    )
    assert python(code) == "[]"


def test_importing_the_modules_sets_no_log_level_hashes_nothing_and_builds_nothing():
    code = (
        "import importlib, logging, pkgutil, jax, absl.logging, orbax.checkpoint, bignas_jax\n"
        "def state(): return logging.root.level, logging.getLogger('absl').level, dict(jax.config.values)\n"
        "before = state()\n"
        "for module in pkgutil.walk_packages(bignas_jax.__path__, 'bignas_jax.'):\n"
        "    if not module.name.endswith('__main__'): importlib.import_module(module.name)\n"
        "from bignas_jax.programs import kept\nfrom bignas_jax.kernels import native\n"
        "print(state() == before, kept.package.cache_info().currsize, native.library.cache_info().currsize)"
    )
    assert python(code) == "True 0 0"


def test_the_names_at_the_top():
    space = load_space(load_config("configs/digits.py"))
    assert isinstance(space, bignas_jax.SearchSpace) and isinstance(space.biggest, bignas_jax.Architecture)
    assert count(space, space.biggest, 10).macs > count(space, space.smallest, 10).macs
    assert set(bignas_jax.__all__) <= set(dir(bignas_jax))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        bignas_jax.nothing  # noqa: B018
    with pytest.raises(ConfigError, match="found no file 'configs/none.py', expected a path such as"):
        load_config("configs/none.py")


def test_versions_are_stated_alike():
    lines = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    project = PROJECT["project"]
    stated = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    assert sorted(filter(None, (line.replace("jax[cuda13]", "jax") for line in lines))) == sorted(stated)
    assert project["optional-dependencies"]["gpu"] == [line for line in lines if line.startswith("jax[")]
    assert project["version"] == bignas_jax.__version__


def test_every_package_and_every_file_that_is_read_comes_along():
    root = ROOT / "bignas_jax"
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in root.rglob("__init__.py")}
    setuptools = PROJECT["tool"]["setuptools"]
    assert set(setuptools["packages"]) == found | {"bignas_jax.recipes"}
    patterns = {re.sub(r"^\*", "", pattern) for pattern in setuptools["package-data"]["*"]}
    other = {path.suffix for path in root.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert other == patterns


def test_no_room_escapes_the_contracts():
    """A new one must be given a place among the layers, and may not use torch unless it is named here."""
    rooms = {f"bignas_jax.{path.stem}" for path in (ROOT / "bignas_jax").iterdir()
             if path.suffix == ".py" or (path / "__init__.py").exists()} - {"bignas_jax.__init__"}  # fmt: skip
    layers, torch, _ = PROJECT["tool"]["importlinter"]["contracts"]
    assert {room for layer in layers["layers"] for room in layer.split(" | ")} == rooms
    assert set(torch["source_modules"]) == rooms - {"bignas_jax.data", "bignas_jax.interop", "bignas_jax.__main__"}
