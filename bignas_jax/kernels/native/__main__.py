"""`python -m bignas_jax.kernels.native`: builds the kernels ahead of the first run."""

import sys

from bignas_jax.kernels.native.toolchain import BuildError, build

if __name__ == "__main__":
    try:
        print(f"native kernels: {build()}")
    except BuildError as error:
        # Not a failure: everything runs without them.
        print(f"no native kernels, the CPU computes slower: {error}", file=sys.stderr)
