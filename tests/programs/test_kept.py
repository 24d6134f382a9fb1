"""Programs kept from run to run: found without a trace, never where anything that determines them has changed."""

import os
import pickle
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from paths import ROOT

from bignas_jax.config.options import Options
from bignas_jax.kernels import native
from bignas_jax.kernels.depthwise.choice import using
from bignas_jax.programs import kept as programs
from bignas_jax.programs.compile import compile_ahead
from bignas_jax.runs.session import Session
from bignas_jax.step.recipe import Recipe
from bignas_jax.training.loop import Run
from configs import digits


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """The folder in which programs are kept, in a home of the test's own."""
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(programs, "_own_folder", None)
    jax.config.update("jax_enable_compilation_cache", True)
    yield programs.use_compilation_cache()
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture
def users(kept, tmp_path):
    """The same where the user has JAX keep programs in a folder."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    compilation_cache.reset_cache()
    return programs.use_compilation_cache()


SETTINGS = (
    "jax_enable_compilation_cache",
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
)


class Traced:
    """A function that counts its traces, and its lowered form."""

    def __init__(self, factor: float = 2.0):
        self.count, self.factor = 0, factor
        self.x = jnp.arange(4.0)

    def __call__(self, x):
        self.count += 1
        return {"y": x * self.factor}

    def lower(self):
        return jax.jit(self, donate_argnums=(0,)).lower(self.x)


def run(traced: Traced, identity: str | None, key="f") -> np.ndarray:
    program = compile_ahead({key: traced.lower}, progress=False, identity=identity)[key]
    return np.asarray(program(jnp.arange(4.0))["y"])


def test_a_second_run_finds_the_program_without_a_trace(kept):
    first, second = Traced(), Traced()
    np.testing.assert_array_equal(run(first, "a"), [0, 2, 4, 6])
    np.testing.assert_array_equal(run(second, "a"), [0, 2, 4, 6])
    assert (first.count, second.count) == (1, 0)


def test_a_loaded_program_donates_and_checks_its_arguments_as_a_compiled_one(kept):
    run(Traced(), "a")
    program = compile_ahead({"f": Traced().lower}, progress=False, identity="a")["f"]
    x = jnp.arange(4.0)
    program(x)
    assert x.is_deleted()
    with pytest.raises(TypeError, match="float32\\[3\\]"):
        program(jnp.arange(3.0))


@pytest.mark.parametrize("identity, key", [("b", "f"), ("a", "g"), (None, "f")])
def test_another_identity_or_key_is_another_program(kept, identity, key):
    run(Traced(), "a")
    np.testing.assert_array_equal(run(Traced(3.0), identity, key), [0, 3, 6, 9])


def test_another_package_settings_flags_or_kernels_are_another_program(kept, monkeypatch):
    def missed() -> bool:
        return programs.Program("a", "f").load() is None

    run(Traced(), "a")
    assert not missed()
    with monkeypatch.context() as patch:
        patch.setattr(programs, "package", lambda: "another")
        assert missed()
    with monkeypatch.context() as patch:
        patch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"] + " --xla_cpu_enable_fast_min_max=true")
        assert missed()
    with jax.numpy_dtype_promotion("strict"), using("grouped"):
        assert missed()
    if native.load():
        with native.off():
            assert missed()
    before = jax.config.jax_default_matmul_precision
    jax.config.update("jax_default_matmul_precision", "highest")
    try:
        assert missed()
    finally:
        jax.config.update("jax_default_matmul_precision", before)
    assert not missed()


def test_sources_that_leave_the_program_as_it_was_cost_a_trace_and_no_compile(kept, monkeypatch):
    run(Traced(), "a")
    monkeypatch.setattr(programs, "package", lambda: "another")
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda _: pytest.fail("compiled"))
    traced = Traced()
    np.testing.assert_array_equal(run(traced, "a"), [0, 2, 4, 6])
    assert traced.count == 1
    assert programs.Program("a", "f").load() is not None, "the new name is written"


def test_a_program_takes_its_own_arguments_though_another_has_the_same_text(kept):
    """The text does not tell which arguments are dropped, nor what they are called."""
    x, y = jnp.arange(4.0), 10 * jnp.arange(4.0)

    def found(function, identity, *arguments):
        lower = {"f": lambda: jax.jit(function).lower(*arguments)}
        return np.asarray(compile_ahead(lower, progress=False, identity=identity)["f"](*arguments))

    for _ in range(2):
        np.testing.assert_array_equal(found(lambda a, b: a * 2.0, "first", x, y), [0, 2, 4, 6])
        np.testing.assert_array_equal(found(lambda a, b: b * 2.0, "second", x, y), [0, 20, 40, 60])
        np.testing.assert_array_equal(found(lambda t: t["u"] * 2.0, "tree", {"u": x}), [0, 2, 4, 6])
        np.testing.assert_array_equal(found(lambda t: t["u"] * 2.0, "wider tree", {"u": x, "v": y}), [0, 2, 4, 6])


def test_without_an_identity_a_program_is_found_by_its_text(kept, monkeypatch):
    first, second = Traced(), Traced()
    run(first, None)
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda _: pytest.fail("compiled"))
    np.testing.assert_array_equal(run(second, None), [0, 2, 4, 6])
    assert (first.count, second.count) == (1, 1)


@pytest.mark.parametrize("users_own", [False, True])
def test_a_file_that_was_cut_off_is_told_once_and_replaced(request, users_own, capsys):
    kept = request.getfixturevalue("users" if users_own else "kept")
    run(Traced(), "a")
    (path,) = kept.glob("*.program")
    path.write_bytes(path.read_bytes()[:100])
    np.testing.assert_array_equal(run(Traced(), "a"), [0, 2, 4, 6])
    assert capsys.readouterr().err.count("compiling again") == 1
    traced = Traced()
    run(traced, "a")
    assert "compiling again" not in capsys.readouterr().err
    # What JAX's own cache has is loaded from there.
    assert traced.count == users_own


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"\0\0", b"missing"])
def test_a_name_that_says_nothing_costs_a_compile(kept, content):
    run(Traced(), "a")
    (path,) = kept.glob("*.name")
    path.write_bytes(content)
    np.testing.assert_array_equal(run(Traced(), "a"), [0, 2, 4, 6])
    traced = Traced()
    run(traced, "a")
    assert traced.count == 0


def test_what_came_from_the_cache_of_jax_is_not_written_once_more(users):
    """On CPUs it would lack its code."""
    run(Traced(), "a")
    for path in users.glob("*"):
        path.unlink()
    jax.clear_caches()
    for _ in range(2):
        traced = Traced()
        np.testing.assert_array_equal(run(traced, "a"), [0, 2, 4, 6])
        assert traced.count == 1
    assert not list(users.glob("*.program"))


def test_programs_of_several_devices_run_where_they_did(kept):
    devices = jax.devices()[2:4]
    sharding = NamedSharding(Mesh(np.array(devices), ("data",)), PartitionSpec("data"))
    x = jax.device_put(jnp.arange(4.0), sharding)
    for _ in range(2):
        program = compile_ahead({"f": lambda: jax.jit(lambda x: x + x.sum()).lower(x)}, progress=False, identity="a")
        y = program["f"](x)
        assert y.sharding.device_set == set(devices)
        np.testing.assert_array_equal(y, [6, 7, 8, 9])
    assert list(kept.glob("*.program"))


def test_nothing_is_kept_where_jax_keeps_nothing(kept):
    jax.config.update("jax_enable_compilation_cache", False)
    for _ in range(2):
        traced = Traced()
        run(traced, "a")
        assert traced.count == 1
    assert not list(kept.rglob("*.program"))


def test_a_folder_that_cannot_be_written_costs_only_the_time(kept, monkeypatch):
    (kept / "file").write_text("")
    monkeypatch.setattr(programs, "_own_folder", kept / "file")
    for _ in range(2):
        np.testing.assert_array_equal(run(Traced(), "a"), [0, 2, 4, 6])


def test_what_no_run_has_loaded_for_a_month_is_removed(kept):
    run(Traced(), "a")
    run(Traced(3.0), "b")
    old = time.time() - programs.KEPT - 10
    for path in kept.glob("*"):
        os.utime(path, (old, old))
    assert programs.Program("a", "f").load() is not None
    programs.forget()
    assert programs.Program("a", "f").load() is not None
    assert programs.Program("b", "f").load() is None
    assert len(list(kept.glob("*"))) == 2


def test_more_than_the_limit_is_removed_oldest_first(kept, monkeypatch):
    for number, age in enumerate((30, 20, 10)):
        (kept / f"{number}.program").write_bytes(bytes(100))
        os.utime(kept / f"{number}.program", (time.time() - age,) * 2)
    monkeypatch.setattr(programs, "LIMIT", 250)
    programs.forget()
    assert sorted(path.name for path in kept.glob("*")) == ["1.program", "2.program"]


def test_the_sources_are_those_that_were_imported():
    """A digest taken later could be of files that changed since, and name an old program as theirs."""
    code = (
        "import pathlib, bignas_jax.programs.kept as p; p.use_compilation_cache(); found = p.package(); "
        "p.PACKAGE = pathlib.Path('/nowhere'); print(found == p.package())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "True"


PROBE = (
    "from bignas_jax.programs.kept import folder, use_compilation_cache as use; import jax; "
    "print(use()); print(folder()); print(jax.config.jax_compilation_cache_dir)"
)


def probe(tmp_path, **variables):
    """What a fresh process reports, in a home folder of its own."""
    environment = {"HOME": str(tmp_path), "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)} | variables
    command = [sys.executable, "-c", PROBE]
    run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    return run.stdout.split(), run.stderr


def test_the_folder_is_in_the_home(tmp_path):
    folder = tmp_path / ".cache" / "bignas_jax" / "programs"
    assert probe(tmp_path)[0] == [str(folder), str(folder), "None"] and folder.is_dir()


def test_the_folder_by_environment(tmp_path):
    folder = str(tmp_path / "xdg" / "bignas_jax" / "programs")
    found, _ = probe(tmp_path, XDG_CACHE_HOME=str(tmp_path / "xdg"))
    assert found == [folder, folder, "None"]
    own = str(tmp_path / "own")
    found, _ = probe(tmp_path, JAX_COMPILATION_CACHE_DIR=own, XDG_CACHE_HOME=str(tmp_path / "xdg"))
    assert found == [f"{own}/bignas_jax", f"{own}/bignas_jax", own]
    assert probe(tmp_path, JAX_ENABLE_COMPILATION_CACHE="false")[0] == ["None", "None", "None"]


def test_a_folder_that_cannot_be_made_stops_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    found, said = probe(tmp_path, XDG_CACHE_HOME=str(tmp_path / "file"))
    assert found == ["None", "None", "None"] and "no compilation cache: cannot make" in said


def identities(**changes) -> tuple[str, str]:
    """The identities of a run's step and of its evaluation."""
    config = digits.get_config()
    config.num_devices = 1
    for name, value in changes.items():
        config.update_from_flattened_dict({name.replace("__", "."): value})
    session = Session.open(Options.of(config), training=True)
    loader = SimpleNamespace(steps_per_epoch=10)
    made = Run(session, loader, None, None, None, False).step
    return made.identity, session.evaluator.identity


@pytest.fixture(scope="module")
def usual():
    return identities()


@pytest.mark.parametrize("change", [dict(log__every_steps=7), dict(checkpoint__keep=9), dict(search__seed=4)])
def test_what_no_program_depends_on_finds_them(usual, change):
    assert identities(**change) == usual


@pytest.mark.parametrize("change, evaluation", [
    (dict(sandwich__num_random=5), False), (dict(sandwich__loss="own_parts:Gap"), False),
    (dict(model__dropout=0.3), False), (dict(optimizer__momentum=0.5), False), (dict(epochs=99), False),
    (dict(data__mean=(0.1, 0.2, 0.3)), True), (dict(space__activation="relu"), True),
    (dict(model__dtype="bfloat16"), True),
])  # fmt: skip
def test_what_a_program_depends_on_is_in_its_name(usual, change, evaluation):
    step, evaluator = identities(**change)
    assert step != usual[0]
    assert (evaluator != usual[1]) == evaluation


def test_an_identity_holds_no_address():
    one, other = {"b": 1, "a": (2.5,)}, {"a": (2.5,), "b": 1}
    assert programs.identity_of(Recipe(), one) == programs.identity_of(Recipe(), other)
    with pytest.raises(TypeError, match="expected plain values"):
        programs.identity_of(object())


def test_an_edit_in_any_room_is_another_package(tmp_path, monkeypatch):
    shutil.copytree(programs.PACKAGE, tmp_path / "copy")
    monkeypatch.setattr(programs, "PACKAGE", tmp_path / "copy")
    digest = programs.package.__wrapped__
    before = digest()
    for path in ("step/members/sandwich.py", "kernels/depthwise/table.json", "spaces/cost.py", "plugins.py"):
        (tmp_path / "copy" / path).open("a").write("\n")
        assert digest() != before, path
        before = digest()


class _Bomb:
    """What a pickle can do: it runs a command when it is read."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("which", ["file", "folder", "above"])
def test_what_another_user_could_have_written_is_not_read(kept, which, tmp_path, capsys):
    """A program is a pickle. One that anybody may write is compiled again, and its file is not opened."""
    run(Traced(), "a")
    for path in kept.glob("*.program"):
        path.write_bytes(pickle.dumps(_Bomb(tmp_path / "hacked")))
    programs._refused.clear()
    opened = {"file": next(kept.glob("*.program")), "folder": kept, "above": kept.parent}[which]
    opened.chmod(0o777)
    np.testing.assert_array_equal(run(Traced(), "a"), [0, 2, 4, 6])
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"no compilation cache: {opened} can be written by everybody" in said
    assert not (tmp_path / "hacked").exists()
    if which != "file":
        assert programs.use_compilation_cache() is None
