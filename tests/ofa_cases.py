"""What Once-for-All's own code computes (mit-han-lab/once-for-all at f03b267), and the spaces to compare with."""

import functools
import json
import runpy

import jax
import numpy as np
from paths import DATA
from tiny import flat

from bignas_jax.interop.imports.bignas_names import read_state_dict
from bignas_jax.spaces.registry import load_space
from configs import ofa_mbv3, ofa_mbv3_w12, ofa_proxyless, ofa_resnet50

FOLDER = DATA / "ofa"
RECIPES = {"ofa_mbv3_w1.0": ofa_mbv3, "ofa_mbv3_w1.2": ofa_mbv3_w12, "ofa_proxyless_w1.3": ofa_proxyless,
           "ofa_resnet50": ofa_resnet50}
SPACES = {name: load_space(recipe.get_config()) for name, recipe in RECIPES.items()}
CASES = json.loads((FOLDER / "cases.json").read_text())  # costs of three slices of each
LOGITS = np.load(FOLDER / "logits.npz")  # of the first 200 classes, by supernet, mode and slice
GRADIENTS = json.loads((FOLDER / "grads.json").read_text())  # of one slice of each: norms by tensor


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


def check_gradients(name: str, value: float, grads: dict, count: int) -> None:
    """Compares a loss and the norms of its gradients with the recorded ones, of which `count` are not zero.

    Tensors that the slice does not use must have none.
    """
    case = GRADIENTS[name]
    np.testing.assert_allclose(value, case["loss"], rtol=1e-4)
    # Their names and order are those of the tensors that the same reader takes.
    shapes = json.loads((FOLDER / f"{name}_manifest.json").read_text())
    norms = {n: np.zeros(s, np.float32) for n, s in shapes.items()}
    for tensor, known in case["tensors"].items():
        norms[tensor][(0,) * len(shapes[tensor])] = 0.0 if known is None else known[0]
    expected = flat(jax.tree.map(lambda a: np.abs(a).sum(), read_state_dict(SPACES[name], norms)[0]))
    found = {path: np.linalg.norm(np.asarray(g, np.float64)) for path, g in flat(grads).items()}
    assert found.keys() == expected.keys()
    errors = [abs(found[path] - e) / e for path, e in expected.items() if e > 1e-6]
    assert len(errors) == count and np.median(errors) < 1e-3 and max(errors) < 5e-2
    assert all(found[path] < 1e-4 for path, e in expected.items() if e == 0)
