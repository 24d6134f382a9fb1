"""A mark for tests of the native kernels, which need a C++ compiler."""

import pytest

from bignas_jax.kernels import native

needs_native = pytest.mark.skipif(not native.load(), reason="no native kernels here")
