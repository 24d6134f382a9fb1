"""The parts of children whose times add up to a child's: the stem, each block, the head. And the whole children that
such a sum is compared with.

A part is known by a name that says what it is and that is the same wherever it is computed from the space again, so
that a table of times, measured elsewhere, needs no other file to be understood.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import re
from collections.abc import Iterator

import numpy as np

from bignas_jax.spaces.architecture import Architecture
from bignas_jax.spaces.layers import Layer
from bignas_jax.spaces.space import HEAD, RESOLUTION, STEM, Choice, Space

FITTED, HELD_BACK = 5, 5  # random networks that are written for another device


@dataclasses.dataclass(frozen=True)
class Part:
    """A piece of a child that can be compiled and timed alone: one of its layers, or all of it.

    Attributes:
      kind: 'stem', 'block', 'head' or 'network'. A head is all layers after the last block, with the classifier.
      key: JSON of everything that decides the program, except batch size and dtype. Parts with equal keys have the same
        program.
      shape: (H, W, C) of one input.
      layers: the part's layers, from the child that the part was found in.
    """

    kind: str
    key: str
    shape: tuple[int, int, int] = dataclasses.field(compare=False)
    layers: tuple[Layer, ...] = dataclasses.field(compare=False)

    @property
    def name(self) -> str:
        """A name for files and tables, such as 'mbconv-28px-40to80-mid240-k5-s2-se60-1f0c22ab9d'.

        It says the kind, the side of the input, the channels, the middle channels, the largest kernel, the stride and
        the squeezed channels. What it does not say decides the digits at its end, which are a digest of the key.
        """
        digest = hashlib.sha256(self.key.encode()).hexdigest()[:10]
        if self.kind == "network":
            return f"network-{self.shape[0]}px-{digest}"
        first, convs = self.layers[0], [conv for layer in self.layers for conv in layer.convs]
        label = re.sub(r"\W+", "_", first.kind) if self.kind == "block" else self.kind
        middle, stride = max(conv.out_width for conv in convs[:-1] or convs), first.stride
        squeeze = f"-se{max(conv.squeeze for conv in convs)}" if any(conv.squeeze for conv in convs) else ""
        size = f"{first.side}px-{first.in_width}to{self.layers[-1].out_width}-mid{middle}"
        return f"{label}-{size}-k{max(conv.kernel_size for conv in convs)}-s{stride}{squeeze}-{digest}"


def parts_of(space: Space, arch: Architecture, num_classes: int) -> list[Part]:
    """The stem, the blocks and the head (with the classifier) of a child, in order.

    Raises:
      ValueError: `arch` is not in `space`.
    """
    layout = space.restricted(only=arch).layout(arch, num_classes)
    blocks = [number for number, layer in enumerate(layout) if layer.stage is not None]
    pieces = [("stem", 0, blocks[0]), *(("block", n, n + 1) for n in blocks), ("head", blocks[-1] + 1, len(layout))]
    found = []
    for kind, first, end in pieces:
        layers = layout[first:end]
        key = f'{{"part": "{kind}", "layers": [{", ".join(map(_described, layers))}]}}'
        found.append(Part(kind, key, (layers[0].side, layers[0].side, layers[0].in_width), layers))
    return found


@functools.lru_cache(maxsize=1 << 16)  # the architectures of a space have few layers that differ
def _described(layer: Layer) -> str:
    """Everything that decides a layer's program, as JSON. Its place in the network is left out."""
    values = dataclasses.asdict(layer)
    return json.dumps({name: values[name] for name in ("kind", "side", "halves", "pools", "convs", "shortcut")})


def network_of(space: Space, arch: Architecture, num_classes: int) -> Part:
    """A whole child as one part.

    Raises:
      ValueError: `arch` is not in `space`.
    """
    own = space.restricted(only=arch)
    key = json.dumps({"part": "network", "space": own.to_dict(), "classes": num_classes})
    return Part("network", key, (arch.resolution, arch.resolution, 3), own.layout(arch, num_classes))


def distinct_parts(space: Space, num_classes: int) -> list[Part]:
    """Every part that some architecture of the space has, once, however many architectures there are."""
    found: dict[str, Part] = {}
    for arch in _covering(space):
        for part in parts_of(space, arch, num_classes):
            found.setdefault(part.key, part)
    return list(found.values())


def _covering(space: Space) -> Iterator[Architecture]:
    """Architectures that together have every part of the space.

    A block depends on the resolution, the choices of its stage, its own choices, and the width of the part before it.
    So these are varied together, for one block after the other, with all else at its largest. The depth of a stage
    changes none of its blocks.
    """
    choices, most = space.choices, [len(choice) - 1 for choice in space.choices]
    groups = [positions for part, positions in space.groups.items() if part != RESOLUTION]
    for before, own in zip([(), *groups], groups, strict=False):
        shared = [*space.groups[RESOLUTION], *(n for n in before if choices[n].kind == "width")]
        shared += [n for n in own if choices[n].block is None and not _is_depth_of_stage(choices[n])]
        for block in sorted({choices[n].block for n in own} - {None}) or [None]:
            varied = shared + [n for n in own if block is not None and choices[n].block == block]
            for values in itertools.product(*(range(len(choices[n])) for n in varied)):
                genes = list(most)
                for n, value in zip(varied, values, strict=True):
                    genes[n] = value
                yield space.at(genes)


def _is_depth_of_stage(choice: Choice) -> bool:
    return choice.kind == "depth" and choice.part not in (STEM, HEAD)


def draw_networks(space: Space, fitted: int, held_back: int) -> tuple[list[Architecture], list[Architecture]]:
    """The networks to fit to, MAX and MIN first, and the networks held back; fewer if the space is too small.

    They are the same whenever they are drawn.
    """
    rng = np.random.default_rng(0)
    drawn = dict.fromkeys((space.biggest, space.smallest))
    extremes, wanted = len(drawn), min(len(drawn) + fitted + held_back, space.size)
    while len(drawn) < wanted:
        drawn[space.sample(rng)] = None
    drawn = list(drawn)
    return drawn[: extremes + fitted], drawn[extremes + fitted :]
