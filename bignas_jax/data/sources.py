"""Where images come from: files by name, parts of larger files (`packed`), or arrays in memory.

A source has
- `labels`: int32 [N];
- `load(i)`: the image, uint8 [H, W, 3]; it raises CorruptImage and UnreadableImage;
- `load_reduced(i, reduction)`: the image, perhaps smaller to save time, and its full height and width;
- `name(i)`: the image's name for messages;
- `max_pixels`: an image with more is not decoded.

Large arrays lie in torch tensors, which the processes of a loader share instead of copying. torch moves a tensor to
share it. So a NumPy view of it is made for each use: an old view would point to freed memory.
"""

import os
from collections.abc import Sequence

import numpy as np
import torch

from bignas_jax.data.decode import MAX_PIXELS, Reduction, read_image, read_reduced


def joined_names(names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of all names behind each other, uint8, and where they end, int64 [N + 1], from 0 on."""
    encoded = [os.fsencode(name) for name in names]
    ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    return np.frombuffer(b"".join(encoded), np.uint8).copy(), ends


class NamedSource:
    """Images with names below `root`. The names of 1.28 million images take some 60 MB, once for all workers."""

    def __init__(self, root: str, names: torch.Tensor, ends: torch.Tensor, labels: torch.Tensor):
        self.root, self.max_pixels = root, MAX_PIXELS
        self._tensors = (names, ends, labels)

    @property
    def labels(self) -> np.ndarray:
        """The labels, int32 [N]."""
        return self._tensors[2].numpy()

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """The arrays that identify the source: the names and labels of its images."""
        return tuple(tensor.numpy() for tensor in self._tensors)

    def __len__(self) -> int:
        return len(self._tensors[2])

    def name(self, i: int) -> str:
        """The path of image `i`."""
        names, ends, _ = (tensor.numpy() for tensor in self._tensors)
        return os.path.join(self.root, os.fsdecode(names[ends[i] : ends[i + 1]].tobytes()))


class FileSource(NamedSource):
    """Image files under `root`."""

    @classmethod
    def from_names(cls, root: str, names: Sequence[str], labels: Sequence[int]) -> "FileSource":
        """The source of the files `names`, paths relative to `root`, with one label each."""
        joined, ends = joined_names(names)
        labels = torch.as_tensor(labels, dtype=torch.int32)
        return cls(root, torch.from_numpy(joined), torch.from_numpy(ends), labels)

    def __reduce__(self):
        return FileSource, (self.root, *self._tensors), {"max_pixels": self.max_pixels}

    def load(self, i: int) -> np.ndarray:
        """Image `i`, uint8 [H, W, 3]. Raises CorruptImage and UnreadableImage."""
        return read_image(self.name(i), self.max_pixels)

    def load_reduced(self, i: int, reduction: Reduction | None) -> tuple[np.ndarray, tuple[int, int]]:
        """Image `i`, perhaps reduced, and its full height and width: see `read_reduced`."""
        return read_reduced(self.name(i), reduction, self.max_pixels)


class ArraySource:
    """Images in memory: uint8 [N, H, W, C] with C = 1 (grey) or 3."""

    def __init__(self, title: str, images: torch.Tensor, labels: torch.Tensor):
        self.title, self.max_pixels = title, MAX_PIXELS
        self._tensors = (images, labels)

    @classmethod
    def from_numpy(cls, title: str, images: np.ndarray, labels: Sequence[int]) -> "ArraySource":
        """The source of `images`, uint8 [N, H, W, C], with one label each."""
        images = np.ascontiguousarray(images, np.uint8)
        return cls(title, torch.from_numpy(images), torch.as_tensor(labels, dtype=torch.int32))

    def __reduce__(self):
        return ArraySource, (self.title, *self._tensors)

    @property
    def labels(self) -> np.ndarray:
        """The labels, int32 [N]."""
        return self._tensors[1].numpy()

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """The arrays that identify the source: its pixels and labels."""
        return tuple(tensor.numpy() for tensor in self._tensors)

    def __len__(self) -> int:
        return len(self._tensors[1])

    def name(self, i: int) -> str:
        """The number of image `i` and the title, for messages."""
        return f"image {i} of {self.title}"

    def load(self, i: int) -> np.ndarray:
        """Image `i`, uint8 [H, W, 3]. A grey image gets three equal channels."""
        image = self._tensors[0].numpy()[i]
        return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image

    def load_reduced(self, i: int, _reduction: Reduction | None) -> tuple[np.ndarray, tuple[int, int]]:
        """Image `i` in full, and its height and width."""
        image = self.load(i)
        return image, image.shape[:2]


Source = NamedSource | ArraySource
