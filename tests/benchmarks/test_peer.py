"""The peer of the benchmarks computes what our supernet computes; and the benchmark that rests on it runs."""

import importlib
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from paths import ROOT
from tiny import CLASSES

from benchmarks.peer import TRAINED, Peer, PeerStep, agreement, flatten, noise, to_ours, to_torch, torch_device
from bignas_jax.config.options import Optimizer
from bignas_jax.errors import ConfigError
from bignas_jax.nets.mode import Mode
from bignas_jax.ops import prepare
from bignas_jax.ops.losses import cross_entropy, smooth
from bignas_jax.step.optimizer import optimizer

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def ours(made, arch, params, images, labels):
    def loss(params):
        x = prepare(images, arch.resolution, MEAN, STD)
        logits = nnx.merge(made.graphdef, params)(x, arch, None, Mode())[0]
        return cross_entropy(logits, smooth(jax.nn.one_hot(labels, CLASSES), 0.1)), logits

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
    name = next(name for name in broken if name.endswith("stem/conv/kernel"))
    wrong = jax.tree_util.tree_map_with_path(
        lambda path, g: 1.1 * g if "/".join(str(k.key) for k in path) == name else g, gradient)
    assert agreement(wrong, soft, *arguments)["gradient"] > 0.05


def test_bfloat16_is_held_against_the_noise_of_the_peer(tiny):
    rng = np.random.default_rng(0)
    images = torch.tensor(rng.integers(0, 256, (8, 26, 26, 3), dtype=np.uint8))
    labels = torch.tensor(rng.integers(0, CLASSES, 8))
    peer = PeerStep(Peer(tiny.space, tiny.params), MEAN, STD, autocast=True)
    arguments = (peer, images, tiny.space.biggest, labels)
    exact, _ = peer.gradient(*arguments[1:], exact=True)
    rounded, _ = peer.gradient(*arguments[1:])

    def judged(change=lambda name, g: g):
        tree = {}
        for name in flatten(tiny.params):
            *path, last = name.split("/")
            node = tree
            for part in path:
                node = node.setdefault(part, {})
            node[last] = change(name, rounded[name.replace("/", "_")])[None]
        found = noise(tree, *arguments)
        return max(found["gradient"], found["parameter"])

    assert any(np.any(exact[name] != rounded[name]) for name in exact)  # the peer does compute in two precisions
    assert judged() <= 1
    assert judged(lambda name, g: 1.3 * g) > 1
    assert judged(lambda name, g: 0 * g if name == "stem/conv/kernel" else g) > 1
    assert judged(lambda name, g: -g if name == "classifier/conv/bias" else g) > 1
    with pytest.raises(ValueError, match="one side only"):
        noise({"stem": {"conv": {"kernel": rounded["stem_conv_kernel"][None]}}}, *arguments)


def test_the_update_is_the_clip_and_sgd_of_our_optimizer(tiny):
    options = Optimizer(clip_norm=0.5, weight_decay=0.1, momentum=0.9, nesterov=True)
    transform = optimizer(options, lambda step: 0.01)
    params, state = tiny.params, transform.init(tiny.params)
    peer = PeerStep(Peer(tiny.space, params), MEAN, STD, clip_norm=0.5, learning_rate=0.01, weight_decay=0.1)
    rng = np.random.default_rng(0)
    for scale in (1.0, 1e-4, 1.0):  # clipped and not, with momentum
        grads = jax.tree.map(lambda p, s=scale: s * rng.standard_normal(p.shape).astype(np.float32), params)
        updates, state = transform.update(grads, state, params)
        params = jax.tree.map(lambda p, u: p + u, params, updates)
        for name, value in flatten(grads).items():
            peer.peer.weights[name.replace("/", "_")].grad += to_torch(value)
        peer.update()
        assert not peer.peer.flat_grad.any()
        for name, value in flatten(params).items():
            found = to_ours(peer.peer.weights[name.replace("/", "_")])
            np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_without_a_gpu_of_its_own_the_peer_says_so(monkeypatch):
    assert torch_device() == "cpu"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="JAX runs on gpu, where PyTorch .* has no device"):
        torch_device()


@pytest.mark.parametrize("shape", [(3, 3, 3, 8), (5, 5, 7), (4, 9), (6,)])
def test_layouts_go_there_and_back(shape):
    array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    np.testing.assert_array_equal(to_ours(to_torch(array)), array)


def test_the_step_benchmark_takes_a_recipes_space_and_the_sandwich_that_both_sides_train(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    step = importlib.import_module("benchmarks.step")
    for given, resolutions in (
        ("", (96, 112, 128)), ("--config configs/cifar10.py", (24, 28, 32)),
        ("--config configs/cifar10.py --resolutions 24", (24,)), ("--config configs/cifar10.py --quick", (6,)),
    ):  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["step.py", *given.split()])
        config, space = step.configuration(step.arguments())
        assert space.resolution == resolutions
        assert {name: config.sandwich[name] for name in TRAINED} == TRAINED
        assert config.model.dropout == config.model.drop_connect == 0.0
    monkeypatch.setattr(sys, "argv", ["step.py", "--config", "configs/ofa_resnet_cifar10.py"])
    with pytest.raises(ConfigError, match="found .*, sandwich, sgd, expected SearchSpace, sandwich, sgd"):
        step.configuration(step.arguments())


def test_the_step_benchmark_runs(tmp_path):
    out = tmp_path / "step.json"
    # In bfloat16, for that is checked in float32 as well.
    command = [sys.executable, "benchmarks/step.py", "--quick", "--dtype", "bfloat16", "--json", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    found = json.loads(out.read_text())
    parts = {f"{part}: images a second over the peer's" for part in ("step", "biggest", "random", "smallest")}
    assert found["quick"] and parts <= {r["name"] for r in found["results"]}
    assert all(r["value"] > 0 for r in found["results"])
