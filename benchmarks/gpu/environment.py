"""The environment in which XLA compiles for GPUs that are not here."""

import os

# Nothing can be tuned on a card that is not here. Without the second one, float32 products of the highest precision
# find no tile of Triton's.
_FLAGS = ("--xla_gpu_autotune_level=0", "--xla_gpu_enable_triton_gemm=false")
# What comes behind a program's text, LLVM and ptxas, changes no count.
_QUICK = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_gpu_disable_gpuasm_optimizations=true",
)
# A compile ends with an error where ptxas reports that a kernel spills registers to memory.
_NO_SPILLS = ("--xla_gpu_fail_ptx_compilation_on_register_spilling=true",)


def prepare(quick: bool, no_spills: bool = False) -> None:
    """Sets the environment. Call it before JAX is imported.

    Args:
      quick: whether machine code is left as it comes; the text of the programs is the same.
      no_spills: whether a program does not compile if one of its kernels spills registers, by ptxas.
    """
    flags = (os.environ.get("XLA_FLAGS", ""), *_FLAGS, *(_QUICK if quick else ()), *(_NO_SPILLS if no_spills else ()))
    os.environ["XLA_FLAGS"] = " ".join(flags).strip()
    os.environ["JAX_PLATFORMS"] = "cpu"  # the CUDA plugin compiles, but there may be no driver
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
