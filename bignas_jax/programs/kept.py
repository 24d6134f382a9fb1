"""Compiled programs that are kept from run to run. They are found by name, without a trace.

JAX's own cache finds a program by its text. The program must be traced and lowered to get this text, which takes two
thirds of the warm start of a full-size run. Here the name of a program is a digest of everything that determines its
text: the specs that it is made of (space, members, loss, step, mesh), the sources of this package and of the user's own
classes, the versions of the libraries, JAX's settings, and the devices. If no program has this name, it is traced and
looked up by its text. So a change of the sources that does not change the program costs a trace but no compile.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
import pathlib
import pickle
import platform
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

import jax
from jax.experimental import serialize_executable

import bignas_jax
from bignas_jax.files import write_bytes
from bignas_jax.kernels import native
from bignas_jax.kernels.depthwise.choice import forced
from bignas_jax.kernels.native import toolchain
from bignas_jax.text import tell
from bignas_jax.trust import why_not_trusted

KEPT = 30 * 86400  # seconds: a program that no run has loaded for so long is removed
LIMIT = 4 << 30  # bytes of all programs: beyond them, the programs that were loaded longest ago are removed
PACKAGE = pathlib.Path(bignas_jax.__file__).parent
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy")
ON_GPUS = ("jax-cuda", "jax_cuda", "nvidia-", "nvidia_")  # prefixes of the distributions that GPU programs use

_own_folder: pathlib.Path | None = None


def use_compilation_cache() -> pathlib.Path | None:
    """Keeps compiled programs in the user's cache folder, so that a second start does not compile.

    The folder is `bignas_jax/programs` under `$XDG_CACHE_HOME` or `~/.cache`. The user's settings of JAX are respected:
    with `$JAX_COMPILATION_CACHE_DIR` the folder is `bignas_jax` under it, and with JAX's cache disabled nothing is
    kept. If several processes share a program, or the backend is neither CPU nor GPU, JAX's own cache keeps the
    programs, in `bignas_jax/xla`.

    Returns:
      The folder; None if nothing is kept, or if the folder cannot be made (one line on stderr says so).
    """
    global _own_folder
    package()  # now: the files may change while this process runs, but its sources are those that it has imported
    if not jax.config.jax_enable_compilation_cache:
        return None
    if jax.config.jax_compilation_cache_dir:
        return folder() or pathlib.Path(jax.config.jax_compilation_cache_dir)
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "bignas_jax"
    where = cache / ("programs" if _supported() else "xla")
    try:
        where.mkdir(parents=True, exist_ok=True, mode=0o700)
        reason = why_not_trusted(where)
    except OSError as error:
        tell(f"no compilation cache: cannot make {where}: {error.strerror}")
        return None
    if reason:
        _refuse(where, reason)
        return None
    if _supported():
        _own_folder = where
    else:
        jax.config.update("jax_compilation_cache_dir", str(where))
        if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    return where


def folder() -> pathlib.Path | None:
    """The folder of kept programs; None if none are kept, or before `use_compilation_cache` has been called."""
    given = jax.config.jax_compilation_cache_dir
    if not jax.config.jax_enable_compilation_cache or not _supported() or "://" in (given or ""):
        return None
    return pathlib.Path(given) / "bignas_jax" if given else _own_folder


def _supported() -> bool:
    return jax.process_count() == 1 and jax.default_backend() in ("cpu", "gpu")


class Program:
    """The place of one program among the kept programs.

    Args:
      identity: a text that determines the program, together with `key` and everything that all programs of this
        process share. None means that the program is found by its text alone.
      key: tells the programs of one identity apart, by its repr.
    """

    def __init__(self, identity: str | None, key: Hashable):
        self.folder, self._name = folder(), None
        if self.folder is not None:
            self._surroundings = surroundings()
            if identity is not None:
                name = _digest("name", *self._surroundings, package(), identity, repr(key))
                self._name = self.folder / f"{name}.name"

    def load(self) -> jax.stages.Compiled | None:
        """The compiled program; None if it is not kept under this identity, or its file is damaged."""
        if self._name is None:
            return None
        try:
            return _read(self.folder / f"{self._name.read_text()}.program", touched=self._name)
        except (OSError, ValueError):  # not there, or no text
            return None

    def compile(self, lowered: jax.stages.Lowered) -> jax.stages.Compiled:
        """Compiles a lowered program and keeps it. It returns the compiled program also if it cannot be kept."""
        text = None if self.folder is None else _text(lowered)
        if text is None:
            return lowered.compile()
        digest = _digest("text", *self._surroundings, *text)
        path = self.folder / f"{digest}.program"
        compiled = _read(path)
        if compiled is None:
            with _loads() as loads:
                compiled = lowered.compile()
            # The user may have set JAX's own cache. On CPUs, a program that came from it would be written without code.
            if loads or not _write(path, _packed(compiled)):
                return compiled
        if self._name is not None:
            _write(self._name, digest.encode())
        return compiled


def load_or_compile(
    identity: str | None, key: Hashable, lower: Callable[[], jax.stages.Lowered]
) -> jax.stages.Compiled:
    """The program of this identity and key. It is loaded if it is kept, otherwise `lower` is called and it is compiled.

    Args:
      identity: as for `Program`.
      key: as for `Program`.
      lower: traces and lowers the program.
    """
    program = Program(identity, key)
    return program.load() or program.compile(lower())


def identity_of(*specs: Any) -> str:
    """A text that is the same for equal specs, and different for different specs.

    Args:
      *specs: frozen dataclasses, numbers, strings, None, and tuples, lists and dictionaries of these.
    Raises:
      TypeError: a spec is of another type, whose text might hold an address in memory.
    """

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
            return [type(value).__qualname__, fields]
        if isinstance(value, Mapping):
            return {str(name): plain(v) for name, v in value.items()}
        if isinstance(value, tuple | list):
            return [plain(v) for v in value]
        if value is None or isinstance(value, str | int | float):
            return value
        raise TypeError(f"identity: found {value!r}, expected plain values and frozen dataclasses")

    return json.dumps(plain(specs), sort_keys=True)


def surroundings() -> tuple[str, ...]:
    """Everything besides its text that a program depends on, on this machine and in this process."""
    settings = {name: value for name, value in jax.config.values.items() if "cache" not in name}
    devices = [(d.id, d.device_kind, d.client.platform_version) for d in jax.devices()]
    flags = [os.environ.get(name, "") for name in ("XLA_FLAGS", "NVIDIA_TF32_OVERRIDE")]
    local = [platform.python_version(), toolchain.processor(), native.identity(), str(forced())]
    return repr(sorted(settings.items())), repr(devices), *_versions(jax.default_backend()), *flags, *local


@functools.cache
def _versions(backend: str) -> tuple[str, ...]:
    found = [f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES]
    if backend == "gpu":
        installed = importlib.metadata.distributions()
        found += sorted(f"{d.name} {d.version}" for d in installed if d.name.lower().startswith(ON_GPUS))
    return tuple(found)


@functools.cache
def package() -> str:
    """A digest of this package's sources."""
    found = hashlib.sha256()
    for path in sorted(p for p in PACKAGE.rglob("*") if p.suffix in (".py", ".json", ".cc", ".h")):
        found.update(path.relative_to(PACKAGE).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()


def _text(lowered: jax.stages.Lowered) -> tuple[str, ...] | None:
    """Everything that tells a program from others; None if JAX does not give it.

    The text alone is not enough: programs of the same text can take other arguments, because they drop unused ones.
    """
    try:
        arguments = lowered._lowering.compile_args  # noqa: SLF001 - JAX has no public way to see the dropped arguments
        kept, devices = sorted(arguments["kept_var_idx"]), [d.id for d in lowered._lowering._device_list]  # noqa: SLF001
    except (AttributeError, KeyError):
        return None
    trees = str(lowered.in_tree), str(lowered.out_tree), repr(lowered.args_info)
    return lowered.as_text(), *trees, repr(kept), repr(devices)


def forget(now: float | None = None) -> None:
    """Removes old programs: those not loaded for KEPT seconds, and beyond LIMIT bytes those loaded longest ago."""
    where, now, size, found = folder(), time.time() if now is None else now, 0, []
    for path in where.glob("*") if where is not None else ():
        with contextlib.suppress(OSError):
            found.append((path.stat().st_mtime, path.stat().st_size, path))
    for used, bytes_, path in sorted(found, reverse=True):
        size += bytes_
        if now - used > KEPT or size > LIMIT:
            with contextlib.suppress(OSError):
                path.unlink()


def _digest(*parts: str) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(part.encode() + b"\0")
    return found.hexdigest()[:32]


def _packed(compiled: jax.stages.Compiled) -> bytes | None:
    """The program as bytes, with the devices that it runs on; None if this program cannot be kept."""
    try:
        return pickle.dumps((_device_ids(compiled), *serialize_executable.serialize(compiled)))
    except Exception:  # noqa: BLE001 - backends and versions of JAX raise their own; without it a start is only slower
        return None


def _device_ids(compiled: jax.stages.Compiled) -> list[int]:
    """The devices that a program runs on, in its order."""
    sharding = jax.tree.leaves(compiled.input_shardings)[0]
    mesh = getattr(sharding, "mesh", None)
    return [d.id for d in (sorted(sharding.device_set, key=lambda d: d.id) if mesh is None else mesh.devices.flat)]


def _read(path: pathlib.Path, touched: pathlib.Path | None = None) -> jax.stages.Compiled | None:
    """The program in a file; None if there is no file, or it cannot be loaded here. Such a file is removed.

    Args:
      path: the file.
      touched: another file that is marked as used, if the program is loaded.
    """
    try:
        reason = why_not_trusted(path)
        content = b"" if reason else path.read_bytes()
    except OSError:
        return None
    if reason:
        _refuse(path.parent, reason)
        return None
    try:
        ids, *parts = pickle.loads(content)  # nobody but this user could write it
        devices = {d.id: d for d in jax.devices()}
        compiled = serialize_executable.deserialize_and_load(*parts, execution_devices=[devices[i] for i in ids])
    except Exception as error:  # noqa: BLE001 - the file is cut off, or a library has changed its form
        tell(f"compiling again what cannot be read from {path}: {str(error)[:200]}")
        with contextlib.suppress(OSError):
            path.unlink()
        return None
    for used in filter(None, (path, touched)):
        with contextlib.suppress(OSError):
            os.utime(used)
    return compiled


_refused: set[pathlib.Path] = set()


def _refuse(where: pathlib.Path, reason: str) -> None:
    """Says once that no program is taken from a folder. Loading one runs what it holds."""
    if where not in _refused:
        tell(f"no compilation cache: {reason}, who could let this program run code; chmod go-w, or remove it")
    _refused.add(where)


def _write(path: pathlib.Path, content: bytes | None) -> bool:
    """Writes `content` to a file, all of it or nothing, because other runs may read or write the file.

    Only the user may read and write the file: somebody else who could write it could run code as this user.

    Returns:
      Whether the content is in the file now.
    """
    if content is None:
        return False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content, shared=True)
    except OSError:
        return False
    return True


_counting = threading.local()


@contextlib.contextmanager
def _loads() -> Iterator[list]:
    """A context with a list that gets an entry for each program that this thread loads from JAX's own cache."""
    _listen()
    _counting.events = []
    try:
        yield _counting.events
    finally:
        _counting.events = None


@functools.cache
def _listen() -> None:
    def note(event: str, **_: Any) -> None:
        events = getattr(_counting, "events", None)
        if events is not None and event == "/jax/compilation_cache/cache_hits":
            events.append(event)

    jax.monitoring.register_event_listener(note)
