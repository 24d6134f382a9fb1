"""Teachers from outside a run: a frozen network whose predictions its members learn from, beside the labels."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from bignas_jax.nets.mode import Mode
from bignas_jax.nets.supernet import Supernet
from bignas_jax.ops import prepare
from bignas_jax.plugins import source
from bignas_jax.programs.devices import REPLICATED, SPLIT, over_devices, replicate, shapes
from bignas_jax.programs.kept import identity_of
from bignas_jax.spaces.space import Space


class Teacher(Protocol):
    """A frozen network from outside the run.

    Attributes:
      identity: a text that determines its programs, as for `compile.compile_ahead`.
    """

    identity: str

    def programs(self, image: jax.ShapeDtypeStruct) -> dict[str, Callable[[], Any]]:
        """Functions that trace its programs for batches of this shape, by key; none if it runs elsewhere."""

    def logits(self, executables: Mapping[Any, Any], image: jax.Array) -> jax.Array:
        """Its logits of a batch.

        Args:
          executables: the compiled programs by key.
          image: uint8 [B, S, S, 3] on the devices, as the members see it.
        Returns:
          float32 [B, classes] on the devices.
        """


@dataclasses.dataclass(frozen=True)
class Network:
    """A network of this package as a teacher. Batch norm uses the statistics of its calibration, as in evaluation.

    Attributes:
      space: a space with one architecture (`slicing.single`).
      num_classes: classes of the classifier.
      dtype: dtype of activations and products.
      params: its weights, nested as `weights.build(space, num_classes)` gives them.
      statistics: layer name to (mean, variance).
      mean: three numbers, one a channel, of images scaled to 0..1, that it was trained with.
      std: three numbers, likewise.
      mesh: the devices.
      parts: the parts of a batch that are computed one after another, as its members' micro-batches are.
    """

    space: Space
    num_classes: int
    dtype: str
    params: Any
    statistics: Mapping[str, tuple[Any, Any]]
    mean: Sequence[float]
    std: Sequence[float]
    mesh: Mesh
    parts: int = 1

    def __post_init__(self):
        object.__setattr__(self, "_operands", replicate(self.mesh, (self.params, dict(self.statistics))))

    @property
    def identity(self) -> str:
        """See `Teacher`."""
        return identity_of(
            self.space.to_dict(), source(type(self.space)), self.num_classes, self.dtype, tuple(self.mean),
            tuple(self.std), self.parts,
        )  # fmt: skip

    def programs(self, image: jax.ShapeDtypeStruct) -> dict[str, Callable[[], Any]]:
        """See `Teacher`."""
        operands = shapes(self._operands, NamedSharding(self.mesh, REPLICATED))
        return {"teacher": lambda: self._program().trace(*operands, image)}

    def logits(self, executables: Mapping[Any, Any], image: jax.Array) -> jax.Array:
        """See `Teacher`."""
        return executables["teacher"](*self._operands, image)

    def _program(self):
        graphdef = graphdef_of(self.space, self.num_classes, self.dtype)
        arch = self.space.biggest

        def logits(params, statistics, image):
            def of(part):
                x = prepare(part, arch.resolution, self.mean, self.std)
                return nnx.merge(graphdef, params)(x, arch, None, Mode(statistics=statistics))[0].astype(np.float32)

            if self.parts == 1:
                return of(image)
            found = jax.lax.map(of, image.reshape(self.parts, -1, *image.shape[1:]))
            return found.reshape(-1, found.shape[-1])

        return over_devices(self.mesh, logits, (REPLICATED, REPLICATED, SPLIT), SPLIT)


def graphdef_of(space: Space, num_classes: int, dtype: str) -> nnx.GraphDef:
    """The graphdef of a space's supernet, without weights."""
    return nnx.graphdef(nnx.eval_shape(lambda: Supernet(space, num_classes, dtype=dtype, rngs=nnx.Rngs(0))))
