"""Weights of the Once-for-All supernets as a function of each tensor's name and shape, in the released spelling.

The gains keep activations near one and float32 accurate on stored statistics for every slice, the smallest included.
"""
import json
import math
import re
import zlib

import numpy as np

CLOSES_A_BLOCK = re.compile(r"point_linear\.bn\.|conv3\.bn\.|^input_stem\.1\.")
RING = np.array([1, 1, 0.3, 0.15])  # scale of a 7x7 depthwise kernel by distance from its centre (max of rows, columns)


def tensor(name, shape):
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("_matrix"):  # 7to5_matrix, 5to3_matrix
        a = np.eye(shape[0]) + rng.normal(0, 0.05, shape)
    elif name.endswith("running_mean"):
        a = rng.normal(0, 0.05, shape)
    elif name.endswith("running_var"):
        a = rng.uniform(0.5, 1.5, shape)
    elif re.search(r"(^|\.)bn\.", name):
        low, high = 0.5, 1.5
        if CLOSES_A_BLOCK.search(name):
            low, high = (0.35, 0.7) if "point_linear" in name else (0.2, 0.4)
        a = rng.uniform(low, high, shape) if name.endswith("weight") else rng.normal(0, 0.05, shape)
    elif name.endswith("se.fc.expand.bias"):
        a = rng.normal(1.5, 0.5, shape)
    elif name.endswith("bias"):
        a = rng.normal(0, 0.02, shape)
    else:
        a = rng.normal(0, math.sqrt(2 / int(np.prod(shape[1:]))), shape)
        if len(shape) == 4 and shape[1] == 1 and shape[2] == 7:
            distance = np.abs(np.arange(7) - 3)
            ring = RING[np.maximum(distance[:, None], distance[None])]
            a = a * ring / np.sqrt((ring**2).mean())
    return a.astype(np.float32)


def state_dict(manifest):
    return {n: tensor(n, tuple(s)) for n, s in json.load(open(manifest)).items()}
