"""Once-for-All's two mobile families, MobileNetV3 and ProxylessNAS (Cai et al., 2020; mit-han-lab/once-for-all).

They are built of the same blocks as `spaces.mobilenet`, with these differences. Each stage has its activation. A block
has a shortcut only where it is the identity, so the first block of a stage usually has none. Smaller depthwise kernels
can be made from larger ones by trained matrices. Batch norm's epsilon is a choice of the family, and no scale starts at
zero: a block without a shortcut would pass nothing on.
"""

import dataclasses
from typing import Any, ClassVar

from bignas_jax.kernels.transform import smaller_sides
from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.layers import Conv, Layer
from bignas_jax.spaces.mobilenet import ACTIVATIONS, SearchSpace, Stage
from bignas_jax.spaces.ofa_form import is_form, read_form


def _check_activation(field: str, value: Any) -> None:
    if value not in ACTIVATIONS:
        raise ValueError(f"{field}: found {value!r}, expected one of {', '.join(ACTIVATIONS)}")


@dataclasses.dataclass(frozen=True)
class OfaStage(Stage):
    """The choices of one stage, and its activation.

    Attributes:
      activation: a name in `mobilenet.ACTIVATIONS`.
    """

    activation: str

    def __post_init__(self):
        super().__post_init__()
        _check_activation(f"space.stages.{self.name}.activation", self.activation)


@dataclasses.dataclass(frozen=True)
class OfaSpace(SearchSpace):
    """The choices of a supernet of Once-for-All.

    Attributes:
      activation: of the stem and the head.
      epsilon: a number that batch norm adds to the variance.
      kernel_transforms: whether smaller kernels are made by trained matrices. Otherwise they are centres.
    """

    epsilon: float
    kernel_transforms: bool

    stage_type: ClassVar[type[Stage]] = OfaStage

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.epsilon, bool) or not isinstance(self.epsilon, float) or not 0 < self.epsilon < 1:
            raise ValueError(f"space.epsilon: found {self.epsilon!r}, expected a number > 0 and < 1")
        if not isinstance(self.kernel_transforms, bool):
            raise ValueError(f"space.kernel_transforms: found {self.kernel_transforms!r}, expected True or False")

    @classmethod
    def family(cls) -> dict[str, str]:
        """See `Space.family`."""
        return {"family": "ofa"}

    def read(self, values: Any) -> Architecture:
        """An architecture in the usual form, or in that of Once-for-All (`ofa_form.read_form`).

        Raises:
          ValueError: the value describes no architecture.
        """
        if is_form(values):
            return read_form(self.stages, self.biggest.width, values)
        return super().read(values)

    def layout(self, arch: Architecture, num_classes: int = 1) -> tuple[Layer, ...]:
        """See `SearchSpace.layout`."""
        return tuple(map(self._own, super().layout(arch, num_classes)))

    def _own(self, layer: Layer) -> Layer:
        """A layer of `SearchSpace` with the differences of this family."""
        if layer.stage is None:
            convs = tuple(dataclasses.replace(conv, epsilon=self.epsilon) for conv in layer.convs)
            return dataclasses.replace(layer, convs=convs)
        shortcut = layer.shortcut
        fits = shortcut.stride == 1 and not shortcut.projects
        return dataclasses.replace(
            layer,
            convs=tuple(self._conv(conv, layer) for conv in layer.convs),
            shortcut=dataclasses.replace(shortcut, elastic=False) if fits else None,
        )

    def _conv(self, conv: Conv, layer: Layer) -> Conv:
        stage, transforms = self.stages[layer.stage], ()
        if conv.depthwise and self.kernel_transforms:
            transforms = smaller_sides(stage.of_block("kernel_size", layer.index))
        return dataclasses.replace(
            conv,
            activation="identity" if conv.activation == "identity" else stage.activation,
            epsilon=self.epsilon,
            zero_scale=False,
            transforms=transforms,
        )
