"""GPUs that programs are compiled for without being there, as XLA takes them: a protobuf in text form.

The numbers are the devices' published data, in the form of OpenXLA's own target files
(xla/backends/gpu/target_config/specs: h100_sxm, h200, a100_sxm_80 and a100_sxm_40).
"""

import dataclasses

_TEXT = """
gpu_device_info {{ threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: {shared_memory} threads_per_core_limit: 2048 core_count: {cores} fpus_per_core: {fpus}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: {bandwidth}
  l2_cache_size: {l2_cache} clock_rate_ghz: {clock_ghz} device_memory_size: {memory}
  shared_memory_per_block_optin: {shared_memory_of_block} cuda_compute_capability {{ major: {capability} }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536 }}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 7 }} runtime_version {{ major: 13 minor: 0 patch: 0 }}
device_description_str: "{name}"
"""


@dataclasses.dataclass(frozen=True)
class Card:
    """A kind of GPU.

    Attributes:
      name: its own name, as its driver gives it.
      capability: major number of its compute capability.
      cores: multiprocessors.
      fpus: float32 units of a multiprocessor.
      clock_ghz: clock rate.
      memory: bytes of its memory.
      bandwidth: bytes a second of its memory.
      l2_cache: bytes.
      shared_memory: bytes of a multiprocessor.
      shared_memory_of_block: bytes that one block can ask for.
    """

    name: str
    capability: int
    cores: int
    fpus: int
    clock_ghz: float
    memory: int
    bandwidth: int
    l2_cache: int
    shared_memory: int
    shared_memory_of_block: int

    @property
    def target_config(self) -> str:
        """Its description for XLA."""
        return _TEXT.format(**dataclasses.asdict(self))


_HOPPER = dict(capability=9, cores=132, fpus=128, clock_ghz=1.98, l2_cache=52428800, shared_memory=233472,
               shared_memory_of_block=232448)  # fmt: skip
_AMPERE = dict(capability=8, cores=108, fpus=64, clock_ghz=1.41, l2_cache=41943040, shared_memory=167936,
               shared_memory_of_block=166912)  # fmt: skip
CARDS = {
    "h100": Card("NVIDIA H100 80GB HBM3", memory=84942979072, bandwidth=3352320000000, **_HOPPER),
    "h200": Card("NVIDIA H200", memory=151397597184, bandwidth=4800000000000, **_HOPPER),
    "a100": Card("NVIDIA A100-SXM4-80GB", memory=85100068864, bandwidth=2039040000000, **_AMPERE),
    "a100-40": Card("NVIDIA A100-SXM4-40GB", memory=42331013120, bandwidth=1555200000000, **_AMPERE),
}
