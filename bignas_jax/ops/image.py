"""Preparation of a batch of images on the device: normalisation, and bicubic resize to a resolution."""

import functools

import jax
import jax.numpy as jnp
import numpy as np


def _cubic(t: np.ndarray, a: float = -0.75) -> np.ndarray:
    """The cubic convolution kernel (Keys, 1981, equation 4)."""
    t = np.abs(t)
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
    return np.where(t <= 1, near, np.where(t < 2, far, 0.0))


@functools.cache
def resize_matrix(size: int, new_size: int) -> np.ndarray:
    """[new_size, size] float32 weights of bicubic interpolation along one axis.

    a = -0.75, half-pixel centres, no antialiasing, the border repeated, as in PyTorch's
    `interpolate(mode="bicubic", align_corners=False)`.
    """
    centre = (np.arange(new_size) + 0.5) * (size / new_size) - 0.5
    first = np.floor(centre).astype(int)
    matrix = np.zeros((new_size, size))
    for offset in range(-1, 3):
        source = first + offset
        np.add.at(matrix, (np.arange(new_size), np.clip(source, 0, size - 1)), _cubic(centre - source))
    return matrix.astype(np.float32)


def bicubic_resize(x: jax.Array, size: int) -> jax.Array:
    """[B, H, W, C] -> [B, size, size, C] as two small matrix products, in float32."""
    high = jax.lax.Precision.HIGHEST
    if x.shape[1] != size:
        x = jnp.einsum("oh,bhwc->bowc", resize_matrix(x.shape[1], size), x, precision=high)
    if x.shape[2] != size:
        x = jnp.einsum("pw,bowc->bopc", resize_matrix(x.shape[2], size), x, precision=high)
    return x


def prepare(images: jax.Array, resolution: int, mean, std) -> jax.Array:
    """uint8 [B, H, W, 3] -> normalised float32 [B, resolution, resolution, 3].

    Args:
      images: uint8 [B, H, W, 3].
      resolution: side of the result in pixels.
      mean: three numbers, one a channel, of images scaled to 0..1.
      std: three numbers, one a channel, of images scaled to 0..1.
    """
    mean, std = np.asarray(mean, np.float32), np.asarray(std, np.float32)
    return bicubic_resize(images.astype(jnp.float32) * (1 / (255 * std)) - mean / std, resolution)
