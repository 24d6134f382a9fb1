"""Batches and settings of a sandwich step, and its images in PyTorch."""

import numpy as np
import torch
import torch.nn.functional as F
from tiny import CLASSES

from bignas_jax.config.options import Optimizer

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
SIDE, BATCH, STEPS = 24, 16, 3
RATE = 0.05
SGD = Optimizer(name="sgd", momentum=0.9, nesterov=True, weight_decay=0.01, clip_norm=0.5)


def batches(seed=0):
    rng = np.random.default_rng(seed)
    return [{"image": rng.integers(0, 256, (BATCH, SIDE, SIDE, 3), np.uint8),
             "label": rng.integers(0, CLASSES, BATCH).astype(np.int32)} for _ in range(STEPS)]


def torch_images(batch, resolution):
    x = torch.tensor(batch["image"].transpose(0, 3, 1, 2).astype(np.float32)) / 255
    x = (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    return F.interpolate(x, (resolution, resolution), mode="bicubic", align_corners=False).permute(0, 2, 3, 1)
