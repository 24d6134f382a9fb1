"""XLA's flags of the tests' own process, and of those that the tests start."""

import importlib.metadata

# LLVM at level 0 halves the time of a compile; the programs here run for milliseconds, whatever their code.
LEVEL = "--xla_backend_optimization_level=0"
_RELEASE = tuple(int(part) for part in importlib.metadata.version("jaxlib").split(".")[:2])
# jaxlib before 0.11 can still emit fusions without MLIR, which halves the time of a compile again.
_EMISSION = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=2" if _RELEASE < (0, 11) else ""
QUICK = f"{LEVEL} {_EMISSION}".strip()
