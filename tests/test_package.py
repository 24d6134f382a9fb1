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


def test_importing_a_module_sets_no_log_level_hashes_nothing_and_builds_nothing(tmp_path):
    code = (
        "import logging, bignas_jax.runs.checkpoint, bignas_jax.programs.kept as kept, bignas_jax.kernels.native as n; "
        "print(logging.getLogger('absl').level, kept.package.cache_info().currsize, n.library.cache_info().currsize)"
    )
    before = python("import logging; from absl import logging as _; print(logging.getLogger('absl').level)")
    assert python(code) == f"{before} 0 0"


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
