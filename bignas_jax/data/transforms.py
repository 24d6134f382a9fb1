"""Decoded images to training and evaluation images, uint8 [H, W, 3] to uint8 [S, S, 3].

Resizing runs in torch, whose uint8 kernels are several times faster than PIL's. AutoAugment, RandAugment and colour
jitter run on PIL images: they are two to three times faster there than on tensors, and the policies were searched with
PIL. torchvision is imported where they are used, because its import takes as long as that of JAX.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from bignas_jax.config.choices import Crops, Policies
from bignas_jax.config.options import Augment
from bignas_jax.data.decode import Reduction
from bignas_jax.errors import DataError

_LONGEST = 64  # times the short side: of a longer image nothing is resized that lies outside of this middle part
_TRIES = 10  # of random resized crop, as torchvision has it
_FLIP, _JITTER, _CROP = 0, 1, 9  # columns of the draws of an image
_ERASE = _CROP + 4 * _TRIES
NUM_DRAWS = _ERASE + 1 + 4 * _TRIES
_ERASED_SCALE, _ERASED_RATIO = (0.02, 1 / 3), (0.3, 3.3)  # of the area, and width / height


@dataclass(frozen=True)
class CenterCrop:
    """Resizes the short side to `resize_to`, bicubic with antialias, then crops the centre to `image_size`.

    Memory is bounded by `resize_to`: of an image that is much longer than wide, the middle alone is resized.
    """

    image_size: int
    resize_to: int

    def __post_init__(self):
        if not 0 < self.image_size <= self.resize_to:
            raise DataError(
                f"config.data.eval_resize is {self.resize_to} and config.data.image_size {self.image_size}: "
                "expected 0 < image_size <= eval_resize"
            )

    def __call__(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        short = min(height, width)
        if max(height, width) > _LONGEST * short:
            image = _middle(image, _LONGEST * short)
            height, width = image.shape[:2]
        if short != self.resize_to:
            image = _resize(image, self.resize_to * height // short, self.resize_to * width // short)
            height, width = image.shape[:2]
        top, left = (round((side - self.image_size) / 2) for side in (height, width))
        return image[top : top + self.image_size, left : left + self.image_size]


@dataclass(frozen=True)
class Augmentation:
    """Crop, flip, policy, colour jitter and erasing, in this order, by random numbers that the caller passes in.

    Crops: 'resized' (Szegedy et al., 2015, section 6), 'padded' (He et al., 2016, section 4.2: zeros on each side, then
    a crop of the original size) or 'none'. Policies: AutoAugment's for ImageNet, CIFAR-10 or SVHN (Cubuk et al., 2019)
    or 'rand' (RandAugment, Cubuk et al., 2020). Colour jitter: brightness, contrast, saturation and hue, in random
    order. Erasing: with probability `erasing`, a rectangle of 2 to 33% of the area and an aspect ratio of 0.3 to 3.3
    gets the image's own mean colour (Zhong et al., 2020, section 3.2; there it gets random values, or ImageNet's mean).

    Args:
        image_size: the side of the resulting images, in pixels.
        how: the `data.augment` options.
    Raises:
        DataError: the padding is wider than the image, or the crop or the policy is unknown.
    """

    image_size: int
    how: Augment

    def __post_init__(self):
        how = self.how
        for field, value, known in (("crop", how.crop, _CROPS), ("policy", how.policy, _POLICIES)):
            if value not in known:
                raise DataError(f"config.data.augment.{field} is {value!r}: expected one of {', '.join(known)}")
        if how.crop == Crops.PADDED and how.padding > self.image_size:
            raise DataError(
                f"config.data.augment.padding is {how.padding}: expected 0 to image_size, {self.image_size}"
            )

    @cached_property
    def _policy(self) -> torch.nn.Module | None:
        return _POLICIES[self.how.policy](self.how)

    @property
    def uses_torch_generator(self) -> bool:
        """Whether the policy draws from torch's default generator, which `__call__` then seeds for each image."""
        return self.how.policy != Policies.NONE

    def reduction(self, draws: list[float]) -> Reduction | None:
        """A function of an image's height and width: how much smaller it may be decoded for the crop of these draws.

        It returns 1, 2, 4 or 8. The reduced crop has at least twice as many pixels as its result along both sides. Its
        edges are moved to whole pixels, which moves the result's edges by a quarter of a pixel at most. None instead of
        a function means that images are decoded in full, whatever their size.
        """
        if self.how.crop != Crops.RESIZED:
            return None

        def choose(height: int, width: int) -> int:
            box = resized_crop_box(height, width, self.how.crop_scale, self.how.crop_ratio, draws[_CROP:])
            return next((factor for factor in (8, 4, 2) if min(box[2:]) >= 2 * factor * self.image_size), 1)

        return choose

    def __call__(
        self, image: np.ndarray, draws: list[float], torch_seed: int, full_size: tuple[int, int] | None = None
    ) -> np.ndarray:
        """The augmented image, uint8 [S, S, 3].

        Args:
            image: uint8 [H, W, 3].
            draws: NUM_DRAWS numbers in [0, 1).
            torch_seed: a 64-bit seed for the policy, which draws from torch.
            full_size: height and width before a reduction; None if the image was not reduced.
        """
        image = _CROPS[self.how.crop](self, image, draws, full_size or image.shape[:2])
        if draws[_FLIP] < self.how.flip:
            image = _flipped(image)
        if self._policy is not None or any(self.how.color_jitter):
            image = self._recolor(Image.fromarray(np.ascontiguousarray(image)), draws, torch_seed)
        if draws[_ERASE] < self.how.erasing:
            image = _erased(image, draws[_ERASE + 1 :])
        return image

    def _resized_crop(self, image: np.ndarray, draws: list[float], full_size: tuple[int, int]) -> np.ndarray:
        box = resized_crop_box(*full_size, self.how.crop_scale, self.how.crop_ratio, draws[_CROP:])
        top, left, height, width = box
        factor = round(full_size[0] / image.shape[0])
        bottom, right = round((top + height) / factor), round((left + width) / factor)
        top, left = round(top / factor), round(left / factor)
        return _resize(image[top:bottom, left:right], self.image_size, self.image_size)

    def _padded_crop(self, image: np.ndarray, draws: list[float], full_size: tuple[int, int]) -> np.ndarray:
        padding = self.how.padding
        down, right = (int(draw * (2 * padding + 1)) - padding for draw in draws[_CROP : _CROP + 2])
        return shifted(self._whole(image, draws, full_size), down, right)

    def _whole(self, image: np.ndarray, draws: list[float], full_size: tuple[int, int]) -> np.ndarray:
        if image.shape[:2] == (self.image_size, self.image_size):
            return image
        return CenterCrop(self.image_size, self.image_size)(image)

    def _recolor(self, image: Image.Image, draws: list[float], torch_seed: int) -> np.ndarray:
        if self._policy is not None:
            # torch.manual_seed would also ask for CUDA's generators and take a hundred times as long.
            torch.default_generator.manual_seed(torch_seed)
            image = self._policy(image)
        ranks = draws[_JITTER + 4 : _JITTER + 8]
        for which in sorted(range(4), key=ranks.__getitem__):
            strength = self.how.color_jitter[which]
            if strength:
                image = _adjust(image, which, strength, draws[_JITTER + which])
        return np.asarray(image)


_CROPS = {
    Crops.RESIZED: Augmentation._resized_crop,
    Crops.PADDED: Augmentation._padded_crop,
    Crops.NONE: Augmentation._whole,
}
_GREY = [128, 128, 128]


def _auto_augment(policy: str) -> Callable[[Augment], torch.nn.Module]:
    def make(how: Augment) -> torch.nn.Module:
        from torchvision.transforms import v2

        return v2.AutoAugment(v2.AutoAugmentPolicy[policy], fill=_GREY)

    return make


def _rand_augment(how: Augment) -> torch.nn.Module:
    from torchvision.transforms import v2

    return v2.RandAugment(how.rand_ops, how.rand_magnitude, fill=_GREY)


_POLICIES: dict[str, Callable[[Augment], torch.nn.Module | None]] = {
    Policies.NONE: lambda how: None,
    Policies.IMAGENET: _auto_augment("IMAGENET"),
    Policies.CIFAR10: _auto_augment("CIFAR10"),
    Policies.SVHN: _auto_augment("SVHN"),
    Policies.RAND: _rand_augment,
}


def _adjust(image: Image.Image, which: int, strength: float, draw: float) -> Image.Image:
    """Brightness, contrast, saturation (0, 1, 2) by a factor around 1, or hue (3) by a shift around 0."""
    from torchvision.transforms.v2 import functional as F

    if which == 3:
        return F.adjust_hue(image, strength * (2 * draw - 1))
    low = max(0.0, 1 - strength)
    factor = low + draw * (1 + strength - low)
    return (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)[which](image, factor)


def resized_crop_box(height: int, width: int, scale, ratio, draws: list[float]) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a random resized crop, in pixels.

    After ten tries that do not fit the image, it is the centre with the nearest aspect ratio that is allowed.

    Args:
        height: the image's height.
        width: the image's width.
        scale: the least and the greatest fraction of the area.
        ratio: the least and the greatest aspect ratio, width / height, drawn log-uniformly.
        draws: numbers in [0, 1), four for each try.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for k in range(0, 4 * _TRIES, 4):
        area = height * width * (scale[0] + draws[k] * (scale[1] - scale[0]))
        aspect = math.exp(low + draws[k + 1] * (high - low))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(draws[k + 2] * (height - h + 1)), int(draws[k + 3] * (width - w + 1)), h, w
    aspect = min(max(width / height, ratio[0]), ratio[1])
    h, w = min(height, max(1, round(width / aspect))), min(width, max(1, round(height * aspect)))
    return (height - h) // 2, (width - w) // 2, h, w


def shifted(image: np.ndarray, down: int, right: int) -> np.ndarray:
    """The square image moved by `down` and `right` pixels, with zeros at the uncovered places.

    This equals a padded crop, without making the padding.
    """
    size = image.shape[0]
    out = np.zeros_like(image)
    out[max(0, down) : size + min(0, down), max(0, right) : size + min(0, right)] = image[
        max(0, -down) : size + min(0, -down), max(0, -right) : size + min(0, -right)
    ]
    return out


def _erased(image: np.ndarray, draws: list[float]) -> np.ndarray:
    """A copy with a rectangle of the image's mean colour; see `Augmentation`."""
    top, left, height, width = resized_crop_box(*image.shape[:2], _ERASED_SCALE, _ERASED_RATIO, draws)
    image = image.copy()
    image[top : top + height, left : left + width] = np.round(image.mean((0, 1)))
    return image


def _middle(image: np.ndarray, longest: int) -> np.ndarray:
    """The middle of an image along its long side, `longest` pixels of it or one more; its centre stays the centre."""
    cut = [max(0, side - longest) // 2 for side in image.shape[:2]]
    return image[cut[0] : image.shape[0] - cut[0], cut[1] : image.shape[1] - cut[1]]


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    if image.shape[:2] == (height, width):
        return image
    # If the strides of all four axes say channels last, PyTorch writes the result like that, too, as NumPy needs it.
    # torchvision's resize passes a [3, H, W] view. Its result has to be transposed, which takes as long as the resize.
    tensor = torch.from_numpy(image).unsqueeze(0).permute(0, 3, 1, 2)
    resized = interpolate(tensor, size=(height, width), mode="bicubic", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def _flipped(image: np.ndarray) -> np.ndarray:
    """The mirror image, contiguous. NumPy takes 20 times as long to copy three-byte pixels backwards."""
    return torch.from_numpy(image).flip(1).numpy()
