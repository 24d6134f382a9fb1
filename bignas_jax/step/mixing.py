"""Mixup and CutMix: each image of a batch is mixed with another one, and its label with the other's label.

Mixup (Zhang et al., 2018) adds the pixels of both images, CutMix (Yun et al., 2019) puts a rectangle of the other image
into the first. Image i of the global batch is mixed with image B - 1 - i, so that devices and processes do not matter.
All images of a batch share one draw, which depends on (seed, step) alone.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bignas_jax.programs.devices import AXIS, REPLICATED, SPLIT, over_devices

_MIXING = 2  # tells the draws of this file apart from a sampler's, which depend on (seed, step), too


def draw(mixup: float, cutmix: float, seed: int, step: int, side: int) -> np.ndarray:
    """What the images of a step are mixed by.

    Where both alphas are given, each step takes one of the two rules, with equal probability.

    Args:
      mixup: alpha of mixup's Beta(alpha, alpha) distribution; 0 means that the rule is not used.
      cutmix: alpha of CutMix's; one of the two is greater than 0.
      seed: the seed of the run.
      step: the number of the step.
      side: side of the images in pixels.
    Returns:
      float32 [6]: a rectangle as its first row, the row behind its last, its first column and the column behind its
      last; the weight of an image's own pixels inside the rectangle, which is 1 outside; and the weight of its own
      label, which is its mean weight in the image.
    """
    rng = np.random.default_rng((seed, step, _MIXING))
    cuts = bool(cutmix) and (not mixup or rng.random() < 0.5)
    share = rng.beta(*(2 * [cutmix if cuts else mixup]))
    if not cuts:
        return np.array([0, side, 0, side, share, share], np.float32)
    # A rectangle of the part 1 - share of the image around a uniform centre; what lies outside the image is left out.
    length = int(side * np.sqrt(1 - share))
    first = rng.integers(side, size=2) - length // 2
    (top, left), (bottom, right) = np.clip(first, 0, side), np.clip(first + length, 0, side)
    area = (bottom - top) * (right - left)
    return np.array([top, bottom, left, right, 0, 1 - area / side**2], np.float32)


def program(mesh: Mesh, num_classes: int) -> Callable:
    """The program that mixes a batch.

    Its arguments are images, uint8 [B, S, S, 3], labels, int32 [B], and what `draw` returns. It returns the mixed
    images, rounded to uint8, and the labels as probabilities, float32 [B, classes].
    """
    devices = mesh.size

    def mix(image, label, drawn):
        top, bottom, left, right, inside, share = drawn
        rows, columns = (jnp.arange(side) for side in image.shape[1:3])
        box = ((rows >= top) & (rows < bottom))[:, None] & ((columns >= left) & (columns < right))
        own = jnp.where(box, inside, 1.0)[:, :, None]
        mixed = own * image.astype(jnp.float32) + (1 - own) * _partners(image, devices).astype(jnp.float32)
        labels, others = (jax.nn.one_hot(a, num_classes) for a in (label, _partners(label, devices)))
        return jnp.rint(mixed).astype(image.dtype), share * labels + (1 - share) * others

    return over_devices(mesh, mix, (SPLIT, SPLIT, REPLICATED), (SPLIT, SPLIT))


def _partners(rows: jax.Array, devices: int) -> jax.Array:
    """The rows of the global batch from the last to the first, as far as they belong to this device."""
    return jax.lax.ppermute(rows[::-1], AXIS, [(n, devices - 1 - n) for n in range(devices)])
