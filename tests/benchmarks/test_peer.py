"""The peer of the benchmarks computes what our supernet computes; and the benchmark that rests on it runs."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from tiny import CLASSES

from benchmarks.peer import Peer, PeerStep, agreement, flatten, to_ours, to_torch
from bignas_jax.losses import cross_entropy, smooth_labels
from bignas_jax.ops import prepare
from bignas_jax.supernet import Mode

ROOT = Path(__file__).resolve().parents[2]
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def ours(made, arch, params, images, labels):
    def loss(params):
        x = prepare(images, arch.resolution, MEAN, STD)
        logits = nnx.merge(made.graphdef, params)(x, arch, None, Mode())[0]
        return cross_entropy(logits, smooth_labels(labels, CLASSES, 0.1)), logits

    grads, logits = jax.jit(jax.grad(loss, has_aux=True))(params)
    return jax.tree.map(lambda g: np.asarray(g)[None], grads), np.asarray(jax.nn.softmax(logits))


@pytest.mark.parametrize("variant", ["tiny", "tiny_v3", "tiny_relu"])
@pytest.mark.parametrize("pointwise", ["conv", "linear"])
def test_it_agrees_with_ours_and_notices_when_it_does_not(variant, pointwise, request):
    made = request.getfixturevalue(variant)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 26, 26, 3), dtype=np.uint8)
    labels = rng.integers(0, CLASSES, 4)
    peer = PeerStep(Peer(made.space, made.params, pointwise), MEAN, STD)
    for arch in (made.space.biggest, made.space.smallest, made.space.sample(rng)):
        gradient, soft = ours(made, arch, made.params, images, labels)
        arguments = (peer, torch.tensor(images), arch, torch.tensor(labels))
        assert max(agreement(gradient, soft, *arguments).values()) < 1e-3
    broken = dict(flatten(gradient))
    name = next(name for name in broken if name.endswith("stem/kernel"))
    wrong = jax.tree_util.tree_map_with_path(
        lambda path, g: 1.1 * g if "/".join(str(k.key) for k in path) == name else g, gradient)
    assert agreement(wrong, soft, *arguments)["gradient"] > 0.05


@pytest.mark.parametrize("shape", [(3, 3, 3, 8), (5, 5, 7), (4, 9), (6,)])
def test_layouts_go_there_and_back(shape):
    array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    np.testing.assert_array_equal(to_ours(to_torch(array)), array)


def test_the_step_benchmark_runs(tmp_path):
    out = tmp_path / "step.json"
    done = subprocess.run(
        [sys.executable, "benchmarks/step.py", "--quick", "--json", str(out)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(out.read_text())
    assert found["quick"] and {"step: images a second over the peer's"} <= {r["name"] for r in found["results"]}
    assert all(r["value"] > 0 for r in found["results"])
