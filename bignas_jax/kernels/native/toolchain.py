"""Builds the native kernels into the user's cache, once for each machine, compiler and version of the sources."""

import concurrent.futures
import hashlib
import os
import pathlib
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile

import jax.ffi
import jaxlib

from bignas_jax.trust import why_not_trusted

FOLDER = pathlib.Path(__file__).parent
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-w")


class BuildError(Exception):
    """The kernels cannot be built here; the message says why, in one line."""


def compiler() -> tuple[str, ...]:
    """The command of the C++ compiler, with its full path: $CXX, which may have arguments, or the first usual one.

    Raises:
      BuildError: no compiler is found.
    """
    commands = [shlex.split(os.environ["CXX"])] if os.environ.get("CXX") else [["c++"], ["g++"], ["clang++"]]
    for name, *arguments in filter(None, commands):
        if path := shutil.which(name):
            return path, *arguments
    looked_for = ", ".join(" ".join(command) for command in commands)
    raise BuildError(f"found no C++ compiler (looked for {looked_for}); install one, such as g++")


def cache_folder() -> pathlib.Path:
    """The folder of built libraries, under `$XDG_CACHE_HOME` or `~/.cache`."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "bignas_jax" / "native"


def build() -> pathlib.Path:
    """The path of the shared library. It is built now (some 10 s) if the cache does not have it.

    Raises:
      BuildError: there is no compiler, it fails, or the cache folder cannot be written.
    """
    command = compiler()
    library = cache_folder() / f"kernels-{_identity(command)}.so"
    try:
        if library.exists():
            _check_trusted(library)
            return library
        library.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _check_trusted(library.parent)
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            # The file is renamed into place when it is whole: other processes may look for it, or build the same one.
            _compile(command, pathlib.Path(folder)).replace(library)
    except OSError as error:
        raise BuildError(f"cannot write {library.parent}: {error.strerror}") from error
    return library


def _check_trusted(path: pathlib.Path) -> None:
    if reason := why_not_trusted(path):
        raise BuildError(f"{reason}, who could let this program run code; chmod go-w, or remove it")


def _identity(command: tuple[str, ...]) -> str:
    """A digest of everything that the library depends on: sources, flags, compiler, jaxlib's version, processor."""
    found = hashlib.sha256()
    for path in sorted([*FOLDER.glob("*.cc"), *FOLDER.glob("*.h")]):
        found.update(path.read_bytes())
    version = subprocess.run([*command, "--version"], capture_output=True, text=True).stdout
    for part in (*FLAGS, *command, version, jaxlib.__version__, platform.machine(), processor()):
        found.update(part.encode() + b"\0")
    return found.hexdigest()[:16]


def processor() -> str:
    """The processor's model and features, which `-march=native` reads. Different machines may share a cache folder."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "".join(line for line in lines[:40] if line.startswith(("flags", "Features", "model name", "CPU part")))


def _compile(command: tuple[str, ...], folder: pathlib.Path) -> pathlib.Path:
    print("building the native kernels, once ...", file=sys.stderr)
    sources = sorted(FOLDER.glob("*.cc"))
    objects = [folder / f"{source.stem}.o" for source in sources]
    include = f"-I{jax.ffi.include_dir()}"
    with concurrent.futures.ThreadPoolExecutor(len(sources)) as pool:
        jobs = [[*command, *FLAGS, include, "-c", str(s), "-o", str(o)] for s, o in zip(sources, objects, strict=True)]
        list(pool.map(_run, jobs))
    library = folder / "kernels.so"
    _run([*command, "-shared", *map(str, objects), "-o", str(library)])
    return library


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines() or [""]
        raise BuildError(f"{command[0]} failed: {lines[0].strip()[:200]}")
