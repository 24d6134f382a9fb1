"""Which process of a run this is, where the command does not say so: from environment variables, ours or SLURM's."""

from collections.abc import Collection, Mapping
from typing import Any

from bignas_jax.config.fields import FIELDS
from bignas_jax.config.options import Distributed
from bignas_jax.errors import ConfigError

# Field to the variable that stands in for it.
VARIABLES = {
    "coordinator": "BIGNAS_COORDINATOR",
    "num_processes": "BIGNAS_NUM_PROCESSES",
    "process_id": "BIGNAS_PROCESS_ID",
}
_SLURM = {"num_processes": "SLURM_NTASKS", "process_id": "SLURM_PROCID"}
_NODES = "SLURM_STEP_NODELIST"  # that of a step: a batch script outside srun is one process, and has none
_FIRST_PORT, _PORTS = 61440, 4096  # SLURM's jobs are spread over these ports by their number


def complete(values: Mapping[str, Any], given: Collection[str], environ: Mapping[str, str]) -> dict[str, Any]:
    """The fields of `config.distributed`, each from the config where it is given there, or from the environment.

    Args:
      values: of the config.
      given: the fields that the command names; a value other than the default counts as given, too.
      environ: as `os.environ`.
    Raises:
      ConfigError: a variable holds what its field cannot; the message names the variable.
    """
    if not all(FIELDS[f"distributed.{name}"].holds(values[name]) for name in VARIABLES):
        return dict(values)  # the check of the whole config says so
    default = Distributed()
    found = {}
    for name, variable in VARIABLES.items():
        if name in given or values[name] != getattr(default, name):
            found[name] = values[name]
        elif environ.get(variable):
            found[name] = _read(name, variable, environ[variable])
    slurm = _slurm(environ) if found.get("num_processes", 2) > 1 else {}
    found = {**dict(values), **slurm, **found}
    if found["num_processes"] > 1:
        return found
    # One process needs none of what the environment says.
    return {name: value if name in given else values[name] for name, value in found.items()}


def local_devices(environ: Mapping[str, str]) -> list[int] | None:
    """The GPU of this process where SLURM started several on its machine and each sees all GPUs; None: all it sees.

    JAX would take one GPU even where SLURM started one process for a machine with many.
    """
    if environ.get("JAX_LOCAL_DEVICE_IDS") or not environ.get("SLURM_LOCALID", "").isdigit() or not _slurm(environ):
        return None
    several = int(environ["SLURM_NTASKS"]) > int(environ.get("SLURM_STEP_NUM_NODES", "1"))
    own = len(environ.get("CUDA_VISIBLE_DEVICES", "").split(",")) == 1 and environ.get("CUDA_VISIBLE_DEVICES")
    return [int(environ["SLURM_LOCALID"])] if several and not own else None


def _slurm(environ: Mapping[str, str]) -> dict[str, Any]:
    """What SLURM says of a step with several tasks; nothing outside one."""
    if not all(environ.get(variable) for variable in (*_SLURM.values(), _NODES)):
        return {}
    found = {name: _read(name, variable, environ[variable]) for name, variable in _SLURM.items()}
    if found["num_processes"] == 1:
        return {}
    job = environ.get("SLURM_JOB_ID", "0")
    port = _FIRST_PORT + (int(job) if job.isdigit() else 0) % _PORTS
    return found | {"coordinator": f"{first_host(environ[_NODES])}:{port}"}


def first_host(nodes: str) -> str:
    """The first machine of SLURM's list, such as gpu07 of gpu[07-09,12],login1."""
    name, bracket, rest = nodes.partition("[")
    if "," in name or not bracket:
        return nodes.split(",")[0]
    numbers, _, after = rest.partition("]")
    return name + numbers.split(",")[0].split("-")[0] + (first_host(after) if after else "")


def _read(name: str, variable: str, text: str) -> Any:
    field = FIELDS[f"distributed.{name}"]
    value: Any = text
    if name != "coordinator":
        value = int(text) if text.isdecimal() else text
    if not field.holds(value):
        raise ConfigError(f"{variable}: found {text!r}, expected {field.expected}, for config.distributed.{name}")
    return value
