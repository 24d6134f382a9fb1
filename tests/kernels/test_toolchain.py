"""Building the native kernels: once, again when something changes, and what happens where it is impossible."""

import os
import shutil

import pytest

from bignas_jax.kernels import native
from bignas_jax.kernels.native import toolchain


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "bignas_jax" / "native"


def fake_compiler(folder, script):
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


# Writes what the command says to write, and counts its runs.
COUNTING = 'case "$1" in --version) echo 1.0; exit;; esac\necho run >> "$0.log"\nfor a; do last=$a; done\n: > "$last"'


def test_it_builds_once_and_again_for_other_sources_or_compilers(cache, tmp_path, monkeypatch):
    compiler = fake_compiler(tmp_path, COUNTING)
    monkeypatch.setenv("CXX", compiler)
    first = toolchain.build()
    runs = (tmp_path / "compiler.log").read_text()
    assert first.parent == cache and first.exists()
    assert toolchain.build() == first and (tmp_path / "compiler.log").read_text() == runs

    sources = tmp_path / "sources"
    shutil.copytree(toolchain.FOLDER, sources)
    (sources / "norm.cc").write_text("// changed\n")
    with monkeypatch.context() as patch:
        patch.setattr(toolchain, "FOLDER", sources)
        assert toolchain.build() != first
    fake_compiler(tmp_path, COUNTING.replace("1.0", "2.0"))
    assert toolchain.build() != first
    # Nothing but the libraries is left behind.
    assert len(list(cache.iterdir())) == 3 and all(path.suffix == ".so" for path in cache.iterdir())


def test_no_compiler_is_said_in_one_line_and_everything_goes_on(cache, monkeypatch, capsys):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(toolchain.BuildError, match="found no C"):
        toolchain.build()
    assert native.library.__wrapped__() is None
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "install one" in message


def test_a_compiler_that_fails_is_named_with_its_first_error(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", fake_compiler(tmp_path, 'echo "x.cc:1: error: no such thing" >&2\nexit 1'))
    with pytest.raises(toolchain.BuildError, match="compiler failed: x.cc:1: error: no such thing"):
        toolchain.build()
    assert not list(cache.iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_cache_that_cannot_be_written_is_named(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", fake_compiler(tmp_path, COUNTING))
    tmp_path.chmod(0o500)
    with pytest.raises(toolchain.BuildError, match="cannot write"):
        toolchain.build()


def test_a_cache_in_the_place_of_a_file_is_named(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", fake_compiler(tmp_path, COUNTING))
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(toolchain.BuildError, match="cannot write"):
        toolchain.build()


def test_the_environment_switches_them_off(monkeypatch):
    monkeypatch.setenv(native.SWITCH, "0")
    assert native.library.__wrapped__() is None
