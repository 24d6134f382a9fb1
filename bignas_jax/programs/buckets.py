"""The bucket that an architecture runs in.

A space has billions of architectures, too many to compile each of them. The biggest and the smallest have executables
of their own ("sliced"). All other architectures of a resolution run in the same executable, which is as wide and deep
as the biggest architecture ("masked").
"""

import dataclasses

from bignas_jax.nets.sizes import sizes
from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.cost import count, executed
from bignas_jax.spaces.space import Space


@dataclasses.dataclass(frozen=True)
class Bucket:
    """An architecture that executables are compiled for.

    Attributes:
      arch: the architecture; weights are sliced to it at trace time.
      masked: whether every architecture inside `arch` can run in it, or only `arch` itself.
    """

    arch: Architecture
    masked: bool

    def sampled(self, space: Space, arch: Architecture) -> dict | None:
        """The sizes of `arch` that the executable gets at run time; None if it is sliced.

        Raises:
          ValueError: `arch` does not run in this bucket.
        """
        if self.masked:
            return sizes(space, self.arch, arch)
        if arch != self.arch:
            raise ValueError(f"architecture {arch.to_json()} has no place in the sliced bucket {self.arch.to_json()}")
        return None

    def executed(self, space: Space, arch: Architecture, num_classes: int) -> int:
        """Multiply-adds of one image's forward pass of `arch` in this bucket's executable; see `spaces.cost`."""
        if self.masked:
            return executed(space, self.arch, arch, num_classes)
        return count(space, self.arch, num_classes).macs


def shared(space: Space, resolution: int) -> Bucket:
    """The masked bucket of all architectures of a resolution."""
    return Bucket(dataclasses.replace(space.biggest, resolution=resolution), masked=True)


def bucket_for(space: Space, arch: Architecture) -> Bucket:
    """The bucket of `arch`: its own if it is the biggest or the smallest, otherwise the one that its resolution shares.

    Raises:
      ValueError: `arch` is not in the space.
    """
    space.check(arch)
    if arch in (space.biggest, space.smallest):
        return Bucket(arch, masked=False)
    return shared(space, arch.resolution)
