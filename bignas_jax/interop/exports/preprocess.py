"""From an image file to the input of a child of a BigNAS supernet, by the steps of preprocessing.json.

    from preprocess import load_spec, preprocess
    spec = load_spec("preprocessing.json")
    image = preprocess("photo.jpg", spec)          # float32 [3, R, R] for ONNX and PyTorch

Needs NumPy and Pillow. If torch is installed, the first resize is PyTorch's, as in training. Otherwise it is Pillow's:
the filter is the same, but a few pixels in a hundred of a photograph differ by 1 or 2 of 255.
"""

import json

import numpy as np
from PIL import Image


def load_spec(path="preprocessing.json"):
    """The content of preprocessing.json, a dictionary."""
    with open(path) as file:
        return json.load(file)


def preprocess(image, spec):
    """An image file's path, or uint8 RGB [H, W, 3], to float32 [3, R, R]. (Transpose to [R, R, 3] for StableHLO.)"""
    if not isinstance(image, np.ndarray):
        with Image.open(image) as file:
            image = np.array(file.convert("RGB"))
    image = resize_short_side(image, spec["resize"]["short_side"])
    size = spec["crop"]["size"]
    top, left = (round((side - size) / 2) for side in image.shape[:2])
    image = image[top : top + size, left : left + size].astype(np.float32) / 255
    image = (image - np.float32(spec["mean"])) / np.float32(spec["std"])
    weights = bicubic_weights(size, spec["size"]["side"])
    image = np.einsum("oh,hwc->owc", weights, image)
    return np.ascontiguousarray(np.einsum("pw,owc->cop", weights, image))


def resize_short_side(image, side):
    """Resizes uint8 [H, W, 3] to the short side `side`: bicubic with antialias. The long side is rounded down."""
    height, width = image.shape[:2]
    short = min(height, width)
    if short == side:
        return image
    height, width = side * height // short, side * width // short
    try:
        import torch
    except ImportError:
        return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
    x = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    x = torch.nn.functional.interpolate(x, (height, width), mode="bicubic", align_corners=False, antialias=True)
    return x[0].permute(1, 2, 0).numpy()


def bicubic_weights(size, new_size):
    """The matrix [new_size, size] of a bicubic resize; the identity if the sizes agree.

    It is a cubic convolution (Keys, 1981) with a = -0.75, half-pixel centres, no antialias, and a repeated border.
    """
    a = -0.75
    weights = np.zeros((new_size, size))
    for row in range(new_size):
        centre = (row + 0.5) * size / new_size - 0.5
        for source in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            t = abs(centre - source)
            near = (a + 2) * t**3 - (a + 3) * t**2 + 1
            weight = near if t <= 1 else a * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0
            weights[row, min(max(source, 0), size - 1)] += weight
    return weights.astype(np.float32)
