"""`config.deterministic`: the same bits twice on one machine and as many devices, on GPUs as on CPUs.

On CPUs every program is deterministic as it is. On GPUs XLA times several kernels for an operation and takes the
fastest, so that another compile may take another one, with sums in another order. Some kernels add up atomically, in no
fixed order. XLA's flag xla_gpu_deterministic_ops ends both; XLA reads its flags once, when it starts.

NCCL may let the switches between GPUs add up (its algorithms NVLS and NVLSTree), in no order that it documents.
Megatron-LM's deterministic mode asks for other algorithms, and so does this one. The Pallas kernels of this package
have no atomic operations.
"""

import re
import sys
from collections.abc import Mapping, MutableMapping

from bignas_jax.errors import ConfigError

FLAG = "xla_gpu_deterministic_ops"
_TRUE = ("", "1", "true")
# Flags that ask for the contrary: the values that do not, and what the others allow.
_CONTRARY = {
    FLAG: (_TRUE, "kernels whose sums have no fixed order"),
    "xla_gpu_exclude_nondeterministic_ops": (_TRUE, "kernels whose sums have no fixed order"),
    "xla_gpu_autotune_level": (("0",), "kernels chosen by their times, which differ from compile to compile"),
}
_IN_SWITCHES = {"nvls", "nvlstree"}
_NCCL_WITHOUT = "^NVLS,NVLSTree"
_OTHERWISE = "or set config.deterministic=False"


def prepare(environment: MutableMapping[str, str]) -> None:
    """Completes XLA_FLAGS and NCCL_ALGO with what makes GPUs deterministic. Call it before JAX starts its devices.

    Args:
      environment: `os.environ`.
    Raises:
      ConfigError: the environment asks for the contrary, or JAX has started already.
    """
    flags = _flags(environment)
    for name, (fine, why) in _CONTRARY.items():
        if flags.get(name, fine[0]) not in fine:
            raise ConfigError(
                f"config.deterministic: found --{name}={flags[name]} in $XLA_FLAGS, which allows {why}: take it out, "
                f"{_OTHERWISE}"
            )
    algorithms = environment.setdefault("NCCL_ALGO", _NCCL_WITHOUT)
    named = _IN_SWITCHES & set(re.split(r"[\s,;:^]+", algorithms.lower()))
    if named != (_IN_SWITCHES if algorithms.startswith("^") else set()):
        raise ConfigError(
            f"config.deterministic: found {algorithms} in $NCCL_ALGO, which allows sums in the switches, in no fixed "
            f"order: take it out, {_OTHERWISE}"
        )
    if FLAG in flags:
        return
    if _started():
        raise ConfigError(f"config.deterministic: JAX started without --{FLAG}=true in $XLA_FLAGS: set it before")
    environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} --{FLAG}=true".strip()


def check(environment: Mapping[str, str], platform: str) -> None:
    """Refuses a deterministic run on GPUs that were started without `prepare`.

    Args:
      environment: `os.environ`.
      platform: of the devices, 'cpu' or 'gpu'.
    Raises:
      ConfigError: the flag is missing.
    """
    if platform == "gpu" and _flags(environment).get(FLAG) not in _TRUE:
        raise ConfigError(f"config.deterministic: found no --{FLAG}=true in $XLA_FLAGS: set it before JAX starts")


def _flags(environment: Mapping[str, str]) -> dict[str, str]:
    """The values of XLA's flags by name, '' without one. The last of a name counts, as for XLA.

    Raises:
      ConfigError: the variable names a file of flags.
    """
    text = environment.get("XLA_FLAGS", "").strip()
    if text and not text.startswith("-"):
        raise ConfigError(
            f"config.deterministic: found the name of a file, {text}, in $XLA_FLAGS, expected the flags themselves"
        )
    pairs = [word.lstrip("-").partition("=") for word in text.split()]
    return {name: value.lower() for name, _, value in pairs}


def _started() -> bool:
    """Whether JAX has started its devices, as the module of a user's own class may make it do."""
    bridge = sys.modules.get("jax._src.xla_bridge")  # JAX has no public way to ask
    return bool(getattr(bridge, "backends_are_initialized", bool)())
