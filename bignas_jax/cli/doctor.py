"""What this machine is, and whether it computes what it should: for bug reports, and for new cards.

    python -m bignas_jax doctor

It prints versions, devices and their memory, the compilation cache and the native kernels. Then it compares a masked
network with its slice, and measures the memory's bandwidth and the speed of reading images, all in under a minute. It
ends with code 1 if something is wrong; those lines begin with "WRONG".
"""

import importlib.metadata
import os
import pathlib
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import jax

import bignas_jax
from bignas_jax.cli import checks, flags, stopping
from bignas_jax.kernels import native
from bignas_jax.kernels.native import toolchain
from bignas_jax.programs import kept

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "torch", "torchvision", "pillow",
             "simplejpeg")  # fmt: skip
# Environment variables with these beginnings change what is computed, or where.
SETTINGS = ("JAX_", "XLA_", "BIGNAS_", "CUDA_", "NVIDIA_", "OMP_", "SLURM_NTASKS", "XDG_CACHE_HOME", "CXX")
FREE_DISK = 2e9  # bytes that a cache of programs may need


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the report. Returns 0 if all is well, otherwise 1; ends with code 2 after a line on a mistake."""
    program, *rest = flags.take_debug(sys.argv if argv is None else argv)
    if any(argument in ("--help", "-help", "-h") for argument in rest):
        print(__doc__.strip())
        return 0
    if rest:
        flags.refuse(program, f"found {rest[0]!r}, expected no argument")
    stopping.working()
    kept.use_compilation_cache()
    start, wrong = time.perf_counter(), 0
    for title, lines in SECTIONS.items():
        print(f"{title}", flush=True)
        wrong += _show(lines)
    print(f"{'all is well' if not wrong else f'{wrong} wrong'}, after {time.perf_counter() - start:.0f} s")
    return 1 if wrong else 0


def _show(lines: Callable[[], Iterator[str]]) -> int:
    """Prints the lines of a section as they come. Returns how many begin with WRONG; an error is one of them."""
    wrong = 0
    try:
        for line in lines():
            print(f"  {line}", flush=True)
            wrong += line.startswith("WRONG")
    except Exception as error:  # noqa: BLE001 - the report goes on, whatever is broken on this machine
        first = (str(error).splitlines() or [""])[0][:300]
        flags.trace()
        print(f"  WRONG {type(error).__name__}: {first} (doctor --debug shows where)", flush=True)
        wrong += 1
    return wrong


def versions() -> Iterator[str]:
    """This package, Python, the system, the libraries."""
    yield f"bignas_jax {bignas_jax.__version__}, sources {kept.package()[:12]}"
    yield f"Python {platform.python_version()}, {platform.platform()}"
    yield ", ".join(f"{name} {_version(name)}" for name in LIBRARIES)
    found = {d.name: d.version for d in importlib.metadata.distributions()}
    # PyTorch brings CUDA's libraries along. Without JAX's own plugin they say nothing.
    plugin = any(name.lower().startswith("jax") for name in found if name.lower().startswith(kept.ON_GPUS))
    cuda = [f"{name} {version}" for name, version in sorted(found.items()) if name.lower().startswith(kept.ON_GPUS)]
    yield ", ".join(cuda) if plugin else "JAX's plugin for CUDA is not installed"
    settings = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith(SETTINGS)]
    yield " ".join(settings) or "no settings in the environment"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def devices() -> Iterator[str]:
    """The devices that JAX computes on, and their memory."""
    kinds: dict[str, int] = {}
    for device in jax.devices():
        kinds[device.device_kind] = kinds.get(device.device_kind, 0) + 1
    for kind, count in kinds.items():
        yield f"{jax.default_backend()}: {count} x {kind}"
    yield f"processor: {_processor()}, {_cores()} cores for this process"
    for device in jax.local_devices():
        stats = device.memory_stats() or {}
        if "bytes_limit" in stats:
            used, limit = stats.get("bytes_in_use", 0) / 1e9, stats["bytes_limit"] / 1e9
            yield f"device {device.id}: {limit:.1f} GB for JAX, {used:.1f} GB in use"
    yield from _host_memory()
    if jax.default_backend() == "cpu" and pathlib.Path("/dev/nvidiactl").exists() and not _asked_for_cpu():
        yield "WRONG there is an NVIDIA GPU, but JAX computes on the CPU: pip install 'jax[cuda13]'"


def _processor() -> str:
    vectors = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_tile") if name in toolchain.processor().split()]
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return " ".join([model or platform.processor() or platform.machine(), *vectors])


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _asked_for_cpu() -> bool:
    return (jax.config.jax_platforms or "").split(",")[0] == "cpu"


def _host_memory() -> Iterator[str]:
    try:
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return
    found = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
    yield f"host: {found['MemTotal'] / 1e9:.1f} GB of memory, {found['MemAvailable'] / 1e9:.1f} GB free"


def cache() -> Iterator[str]:
    """The folder of compiled programs."""
    where = kept.folder()
    if where is None:
        yield "compiled programs are not kept: every start compiles"
        return
    there = next(path for path in (where, *where.parents) if path.exists())  # the first program makes the folder
    files = list(where.glob("*.program"))
    size, disk = sum(path.stat().st_size for path in files), shutil.disk_usage(there)
    yield f"{where}: {len(files)} programs, {size / 1e6:.0f} MB; {disk.free / 1e9:.1f} GB free on its disk"
    if not there.is_dir() or not os.access(there, os.W_OK):
        why = "cannot be written: every start compiles; mend its owner" if there.is_dir() else "is no folder: move it"
        yield f"WRONG {there} {why}, or set JAX_COMPILATION_CACHE_DIR to another"
    if disk.free < FREE_DISK:
        yield f"WRONG less than {FREE_DISK / 1e9:.0f} GB are free there: programs and checkpoints need room"


def kernels() -> Iterator[str]:
    """The kernels of our own for this device."""
    if jax.default_backend() != "cpu":
        yield "native kernels are for CPUs; on this device programs use Pallas and XLA"
        return
    if os.environ.get(native.SWITCH) == "0":
        yield f"native kernels are switched off ({native.SWITCH}=0): XLA's operations compute the same, more slowly"
        return
    name = native.library()
    if name is None:
        yield "WRONG no native kernels: steps take longer; install a C++ compiler such as g++ (the reason is on stderr)"
    else:
        yield f"{toolchain.cache_folder() / name}"


def masked_against_sliced() -> Iterator[str]:
    """One architecture in its shared program and alone: their gradients must agree."""
    found = checks.masked_against_sliced()
    text = f"gradients differ by {found:.1e} of their norm, expected at most {checks.TOLERANCE:.0e}"
    yield text if found <= checks.TOLERANCE else f"WRONG {text}: do not train here"


def speed() -> Iterator[str]:
    """The memory's bandwidth, the rate of products, the rate of reading images."""
    yield f"copy: {checks.copy_bandwidth() / 1e9:.0f} GB/s, reads and writes together"
    for dtype in ("float32", "bfloat16"):
        yield f"matrix product in {dtype}: {checks.product_rate(dtype) / 1e12:.2f} TFLOP/s"
    rate = checks.images_a_second()
    yield f"images: {rate:.0f} a second and core, from JPEG files of 500x400 to random crops of 224x224"


SECTIONS: dict[str, Callable[[], Iterator[str]]] = {
    "versions": versions,
    "devices": devices,
    "compiled programs": cache,
    "kernels": kernels,
    "masked against sliced": masked_against_sliced,
    "speed": speed,
}
