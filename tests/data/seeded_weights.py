"""Weights that are a function of each tensor's name and shape, in the names of PyTorch's systems."""

import json
import math
import re
import sys
import zlib

import numpy as np


def tensor(name, shape):
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("running_mean"):
        a = rng.normal(0, 0.1, shape)
    elif name.endswith("running_var"):
        a = rng.uniform(0.5, 1.5, shape)
    elif re.search(r"(^|\.)bn\.", name):
        a = rng.uniform(0.5, 1.5, shape) if name.endswith("weight") else rng.normal(0, 0.1, shape)
    elif name.endswith("bias"):
        a = rng.normal(0, 0.02, shape)
    else:
        a = rng.normal(0, math.sqrt(2 / int(np.prod(shape[1:]))), shape)
    return a.astype(np.float32)


def state_dict(manifest):
    return {n: tensor(n, tuple(s)) for n, s in json.load(open(manifest)).items()}


if __name__ == "__main__":  # manifest.json out.pth key
    import torch
    manifest, out, key = sys.argv[1:4]
    torch.save({key: {n: torch.tensor(a) for n, a in state_dict(manifest).items()}}, out)
