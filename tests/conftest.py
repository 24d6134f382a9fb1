"""Eight virtual CPU devices for every test, set before anything imports JAX."""

import os

import xla_flags

os.environ["JAX_PLATFORMS"] = "cpu"
flags = "--xla_force_host_platform_device_count=8", xla_flags.QUICK
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags])
# Compiles are counted and timed here: none may come from an earlier run.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before anything imports onnxruntime

import gc  # noqa: E402
import pathlib  # noqa: E402
import shutil  # noqa: E402
import tempfile  # noqa: E402

import jax  # noqa: E402
import pytest  # noqa: E402
from run_lab import SHARED_CACHE  # noqa: E402
from tiny import Tiny  # noqa: E402

MAPPINGS = 12_000
# These modules take a minute or more: they go first, so that no worker is left with one while the others have ended.
LONG_FIRST = (
    "test_matrix.py",
    "training/test_loop.py",
    "benchmarks/test_peer.py",
    "programs/test_processes.py",
    "benchmarks/test_crash.py",
    "benchmarks/test_scaling.py",
    "benchmarks/test_soak.py",
    "test_extending.py",
    "test_tour.py",
    "nets/test_supernet.py",
    "search/test_search.py",
    "training/test_origin.py",
    "training/test_processes.py",
    "training/test_phase_runs.py",
    "training/test_deterministic.py",
    "search/test_search_processes.py",
    "cli/test_commands.py",
)


def pytest_configure(config):
    """Makes one folder of compiled programs for the processes that the tests start, whichever worker starts them."""
    if not hasattr(config, "workerinput"):
        os.environ[SHARED_CACHE] = tempfile.mkdtemp(prefix="bignas-tests-cache-")


def pytest_collection_modifyitems(items):
    """Moves the longest modules to the front; the rest stays in its order."""
    places = {f"/tests/{name}": place for place, name in enumerate(LONG_FIRST)}

    def place(item) -> int:
        return next((place for end, place in places.items() if item.path.as_posix().endswith(end)), len(places))

    items.sort(key=place)


def pytest_unconfigure(config):
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ.pop(SHARED_CACHE), ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def programs_end_with_their_module():
    """Frees what JAX keeps compiled if that is much: programs hold mappings, of which a process may have 65,530."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if not maps.exists() or len(maps.read_bytes().splitlines()) > MAPPINGS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    """The tiny space with weights, by the names of both sides."""
    return Tiny()


@pytest.fixture(scope="session")
def tiny_v3() -> Tiny:
    """The same with a v3 head and h-swish."""
    return Tiny(v3_head=True, activation="h_swish")


@pytest.fixture(scope="session")
def tiny_relu() -> Tiny:
    """The same with relu."""
    return Tiny(activation="relu")
