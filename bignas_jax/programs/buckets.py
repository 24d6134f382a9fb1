"""Which bucket an architecture runs in, and the executables of a run, compiled ahead of its first step.

A space has billions of architectures, too many to compile each: the biggest and the smallest have executables of
their own ("sliced"), all others share one a resolution, as wide and deep as the biggest ("masked").
"""

import dataclasses

from bignas_jax.nets.sizes import sizes
from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.cost import count, executed
from bignas_jax.spaces.space import Space


@dataclasses.dataclass(frozen=True)
class Bucket:
    """What an executable is compiled for: `arch` itself, or, if `masked`, every architecture inside it."""

    arch: Architecture
    masked: bool

    def sampled(self, space: Space, arch: Architecture) -> dict | None:
        """What the executable must be told of `arch`: None if it is `self.arch`, sliced.

        Raises:
          ValueError: `arch` does not run in this bucket.
        """
        if self.masked:
            return sizes(space, self.arch, arch)
        if arch != self.arch:
            raise ValueError(f"architecture {arch.to_json()} has no place in the sliced bucket {self.arch.to_json()}")
        return None

    def executed(self, space: Space, arch: Architecture, num_classes: int) -> int:
        """Multiply-adds of one image's forward pass of `arch` in this bucket's executable."""
        if self.masked:
            return executed(space, self.arch, arch, num_classes)
        return count(space, self.arch, num_classes).macs


def shared(space: Space, resolution: int) -> Bucket:
    """The masked bucket of all architectures of a resolution."""
    return Bucket(dataclasses.replace(space.biggest, resolution=resolution), masked=True)


def bucket_for(space: Space, arch: Architecture) -> Bucket:
    """The bucket in which `arch` runs without a compile: the biggest and the smallest have their own, others share one.

    Raises:
      ValueError: `arch` is not in the space.
    """
    space.check(arch)
    if arch in (space.biggest, space.smallest):
        return Bucket(arch, masked=False)
    return shared(space, arch.resolution)
