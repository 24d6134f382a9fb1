"""The sampled channels of a product, which its kernels are told."""

from typing import NamedTuple

import jax


class Used(NamedTuple):
    """Sampled channels of a product's input and output, int32 scalars; None means all."""

    inputs: jax.Array | None = None
    outputs: jax.Array | None = None

    def numbers(self, inputs: int, outputs: int) -> tuple[jax.Array | int, jax.Array | int]:
        """Both counts, of a product that has so many channels in all."""
        return inputs if self.inputs is None else self.inputs, outputs if self.outputs is None else self.outputs

    def turned(self) -> "Used":
        """Of the product with the transposed kernel."""
        return Used(self.outputs, self.inputs)
