"""A family of networks that the package does not know: plain convolution blocks, defined in this file alone.

It is trained by sandwich steps, counted, sliced, calibrated, searched and exported, through the scripts' own functions.
"""

import dataclasses
import json
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from ml_collections import ConfigDict

from bignas_jax import ops
from bignas_jax.config import fields
from bignas_jax.config.options import Options
from bignas_jax.errors import ConfigError, ExportError
from bignas_jax.interop.exports import comparing, export, formats
from bignas_jax.nets.child import take
from bignas_jax.nets.sizes import sizes
from bignas_jax.nets.slicing import param_shapes, single, slice_params
from bignas_jax.programs.buckets import shared
from bignas_jax.programs.weights import build
from bignas_jax.search import run
from bignas_jax.spaces.cost import count
from bignas_jax.spaces.layers import Conv, Dim, Layer, after_stride
from bignas_jax.spaces.registry import space_of
from bignas_jax.spaces.space import Choice, Space
from bignas_jax.training.loop import train
from configs import digits

BLOCK, FAMILY = f"{__name__}:PlainBlock", f"{__name__}:PlainSpace"


@dataclasses.dataclass(frozen=True)
class PlainSpace(Space):
    """Two stages of dense convolutions; the kernel size is chosen block by block."""

    resolution: tuple[int, ...]
    width: tuple[tuple[int, ...], ...]
    depth: tuple[tuple[int, ...], ...]
    kernel_size: tuple[tuple[tuple[int, ...], ...], ...]

    @cached_property
    def choices(self):
        found = [Choice("resolution", "resolution", None, self.resolution), Choice("width", "stem", None, (8,))]
        for number, (width, depth, kernels) in enumerate(zip(self.width, self.depth, self.kernel_size, strict=True)):
            name = f"s{number}"
            found += [Choice("width", name, None, width), Choice("depth", name, None, depth)]
            found += [Choice("kernel_size", name, block, values) for block, values in enumerate(kernels)]
            found.append(Choice("expand_ratio", name, None, (1,)))
        return (*found, Choice("width", "head", None, (16,)))

    def layout(self, arch, num_classes=1):
        side, width, number = arch.resolution, arch.width[0], 0
        stem = Conv("conv", 3, width, side, 3, 1, "dense", activation="relu", out="out")
        found = [Layer("stem", ("stem",), (stem,), side, (Dim("out", width),))]
        for stage, depths in enumerate(self.depth):
            for index in range(depths[-1]):
                if index < arch.depth[stage]:
                    entry = arch.kernel_size[stage]
                    kernel = entry[index] if isinstance(entry, tuple) else entry
                    stride, out = (2 if index == 0 else 1), arch.width[stage + 1]
                    before, side = side, after_stride(side, stride)
                    conv = Conv("conv", width, out, side, kernel, stride, "dense", activation="relu", out="out")
                    dims = (Dim("in", width), Dim("out", out), Dim("kernel", kernel))
                    found.append(Layer(BLOCK, ("blocks", number), (conv,), before, dims, stage=stage, index=index,
                                       optional=index >= depths[0]))  # fmt: skip
                    width = out
                number += 1
        head = Conv("conv", width, arch.width[-1], side, activation="relu", out="out")
        linear = Conv("conv", arch.width[-1], num_classes, 1, form="linear", bias=True, norm=False)
        found.append(Layer("head", ("head",), (head,), side, (Dim("out", arch.width[-1]),), pools=True))
        return (*found, Layer("classifier", ("classifier",), (linear,), 1))

    def restricted(self, only=None, max_resolution=0, largest=None):
        if only is None:
            return dataclasses.replace(
                self, resolution=tuple(r for r in self.resolution if not max_resolution or r <= max_resolution)
            )
        self.check(only)
        kernels = tuple(
            tuple((k,) for k in (entry if isinstance(entry, tuple) else (entry,) * depth))
            for entry, depth in zip(only.kernel_size, only.depth, strict=True)
        )
        return PlainSpace((only.resolution,), tuple((w,) for w in only.width[1:-1]),
                          tuple((d,) for d in only.depth), kernels)  # fmt: skip


class DenseConv(nnx.Module):
    """A dense convolution, elastic in its channels and its kernel size."""

    def __init__(self, conv, rngs):
        shape = (conv.kernel_size, conv.kernel_size, conv.in_width, conv.out_width)
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), shape) * (2 / np.prod(shape[:3])) ** 0.5)

    def __call__(self, x, conv, kernel_size):
        border = (self.kernel[...].shape[0] - conv.kernel_size) // 2
        kernel = self.kernel[...][border:, border:][: conv.kernel_size, : conv.kernel_size]
        kernel = kernel[:, :, : conv.in_width, : conv.out_width]
        if kernel_size.sampled is not None:
            inside = jnp.abs(jnp.arange(conv.kernel_size) - conv.kernel_size // 2) <= kernel_size.sampled // 2
            kernel = jnp.where((inside[:, None] & inside)[:, :, None, None], kernel, 0)
        pad = conv.kernel_size // 2
        return jax.lax.conv_general_dilated(x, kernel.astype(x.dtype), (conv.stride,) * 2, ((pad, pad),) * 2,
                                            dimension_numbers=("NHWC", "HWIO", "NHWC"))  # fmt: skip


class PlainBlock(nnx.Module):
    """A dense convolution, batch norm and relu."""

    def __init__(self, layer, *, rngs):
        (conv,) = layer.convs
        self.conv = DenseConv(conv, rngs)
        self.conv_norm = ops.BatchNorm(conv.out_width)

    def __call__(self, x, layer, size, mode, drop_rate=0.0, rng=None):
        (conv,) = layer.convs
        y = self.conv(x, conv, size["kernel"])
        y, statistics = self.conv_norm(y, size["out"], activation="relu", **mode.of("conv"))
        return y, {"conv": statistics}

    @staticmethod
    def write_onnx(graph, x, layer):
        (conv,) = layer.convs
        return graph.activate(graph.conv_norm(x, layer.label, conv.stride), conv.activation)

    torch_source = '''
class PlainBlock(Stem):
    """A convolution with an activation, as the stem is one."""
'''


SPACE = PlainSpace((6, 8), ((8, 16), (16,)), ((1, 2), (1, 2)), (((3, 5), (1, 3)), ((3,), (3, 5))))
MIDDLE = SPACE.at([1, 0, 1, 1, 1, 0, 0, 0, 1, 0, 1, 0, 0])


def config_of(folder):
    config = digits.get_config()
    config.space = ConfigDict(dict(family=FAMILY, resolution=(6, 8), width=((8, 16), (16,)), depth=((1, 2), (1, 2)),
                                   kernel_size=(((3, 5), (1, 3)), ((3,), (3, 5)))))  # fmt: skip
    config.data.image_size = config.data.eval_resize = 8
    config.data.holdout = 100
    config.batch_size, config.epochs, config.max_steps, config.num_devices = 32, 1, 6, 1
    config.optimizer.warmup_epochs = 0.0
    config.sandwich.num_random = 1
    config.calibration.num_images = config.calibration.batch_size = 64
    config.search.calibration_images = 64
    config.search.num_evaluations, config.search.population = 8, 4
    fields.validate(config)
    return fields.canonical(config).lock()


def test_genes_and_sizes_count_networks():
    archs = list(SPACE.enumerate())
    assert len(set(archs)) == len(archs) == SPACE.size == 2 * (2 * (2 + 2 * 2)) * (1 + 2)
    assert all(SPACE.at(SPACE.indices(arch)) == arch for arch in archs)
    assert space_of(json.loads(json.dumps(SPACE.to_dict()))) == SPACE
    assert single(SPACE, MIDDLE).biggest == MIDDLE and single(SPACE, MIDDLE).size == 1


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("plain") / "run"
    rows = train(Options.of(config_of(workdir)), workdir, progress=False)
    return Options.of(config_of(workdir)), workdir, rows


def test_it_is_trained_by_sandwich_steps_and_calibrated(trained):
    _, workdir, rows = trained
    assert [row["name"] for row in rows] == ["MAX", "MIN"]
    assert all(np.isfinite(row["loss"]) and row["images"] == 359 for row in rows)
    last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 6


def test_masked_equals_sliced_equals_the_slice_s_own_network():
    graphdef, params = build(SPACE, 7)
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda s: s.shape, param_shapes(SPACE, 7))
    x = np.random.default_rng(0).standard_normal((4, MIDDLE.resolution, MIDDLE.resolution, 3), np.float32)
    bucket = shared(SPACE, MIDDLE.resolution).arch
    net = nnx.merge(graphdef, params)
    masked = net(x, bucket, sizes(SPACE, bucket, MIDDLE))[0]
    sliced = net(x, MIDDLE)[0]
    own = nnx.merge(build(single(SPACE, MIDDLE), 7)[0], slice_params(SPACE, params, MIDDLE))(x, MIDDLE)[0]
    np.testing.assert_allclose(masked, sliced, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(own, sliced)


def test_its_cost_is_what_pytorch_counts():
    _, params = build(SPACE, 10)
    widths = {n: w for layer in SPACE.layout(SPACE.biggest) for n, w in layer.statistics().items()}
    stored = {name: (np.zeros(width, np.float32), np.ones(width, np.float32)) for name, width in widths.items()}
    scope: dict = {}
    exec(formats.torch_source(take(SPACE, params, stored, MIDDLE)), scope)
    model, macs = scope["Child"](scope["DESCRIPTION"]), []
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda m, _, y: macs.append(y[0, 0].numel() * m.weight.numel()))
        elif isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda m, *_: macs.append(m.weight.numel()))
    model(torch.zeros(1, 3, MIDDLE.resolution, MIDDLE.resolution))
    cost = count(SPACE, MIDDLE, 10)
    assert (cost.macs, cost.params) == (sum(macs), sum(p.numel() for p in model.parameters()))


def test_it_is_searched_and_exported(trained):
    options, workdir, _ = trained
    found = run.search(options, workdir)
    assert len(found["evaluations"]) >= 8 and found["budgets"]
    winner = workdir / found["budgets"][0]["file"]
    form = export.Form(formats=("onnx", "torch", "safetensors"), images=16)
    (row,) = export.export_run(options, workdir, [str(winner)], form)
    comparing.check([row])
    assert {file["format"] for file in row["files"]} == {"onnx", "torch", "safetensors"}
    assert all(file["difference"] < 1e-4 for file in row["files"])


def test_a_kind_without_a_form_in_a_format_is_named(monkeypatch, trained):
    options, workdir, _ = trained
    monkeypatch.delattr(PlainBlock, "write_onnx")
    monkeypatch.delattr(PlainBlock, "torch_source")
    for name, words in (("onnx", "write_onnx"), ("torch", "torch_source")):
        with pytest.raises(ExportError, match=f"have no .* form, expected .*{words}"):
            list(export.export_run(options, workdir, ["min"], export.Form(formats=(name,), images=8),
                                   out=workdir / "other"))  # fmt: skip


@pytest.mark.parametrize("family, words", [
    ("resnext", "config.space.family: found 'resnext', expected one of mobilenet, ofa, resnet, or a class of your own"),
    ("no_such_module:Space", "cannot import 'no_such_module'"), (f"{__name__}:Nothing", "found no 'Nothing'"),
])
def test_a_family_that_is_not_there_is_named(family, words, tmp_path):
    config = config_of(tmp_path).copy_and_resolve_references().unlock()
    config.space.family = family
    with pytest.raises(ConfigError, match=words):
        fields.validate(config)
