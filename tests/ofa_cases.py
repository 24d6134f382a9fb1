"""What Once-for-All's own code computes (mit-han-lab/once-for-all at f03b267), and the spaces to compare with."""

import functools
import json
import runpy

import numpy as np
from paths import DATA

from bignas_jax.interop.imports.bignas_names import read_state_dict
from bignas_jax.spaces.registry import load_space
from configs import ofa_mbv3, ofa_mbv3_w12, ofa_proxyless

FOLDER = DATA / "ofa"
RECIPES = {"ofa_mbv3_w1.0": ofa_mbv3, "ofa_mbv3_w1.2": ofa_mbv3_w12, "ofa_proxyless_w1.3": ofa_proxyless}
SPACES = {name: load_space(recipe.get_config()) for name, recipe in RECIPES.items()}
CASES = json.loads((FOLDER / "cases.json").read_text())  # costs of three slices of each
LOGITS = np.load(FOLDER / "logits.npz")  # of the first 200 classes, by supernet, mode and slice


@functools.cache
def state_dict(name: str) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint as released ones are named, with values that follow from the names."""
    return runpy.run_path(str(FOLDER / "ofa_seeded_weights.py"))["state_dict"](FOLDER / f"{name}_manifest.json")


@functools.cache
def weights(name: str) -> tuple[dict, dict]:
    """The same as parameters, and the statistics stored in it."""
    return read_state_dict(SPACES[name], state_dict(name))


def images(seed: int, count: int, resolution: int) -> np.ndarray:
    """The images that the cases were computed on, [count, R, R, 3]."""
    drawn = np.random.default_rng(seed).standard_normal((count, 3, resolution, resolution))
    return drawn.astype(np.float32).transpose(0, 2, 3, 1)
