"""Reads a specialised network of Once-for-All: the folder with `net.config`, `run.config` and `init`."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from bignas_jax.config.options import Options
from bignas_jax.errors import FileError, WeightsError
from bignas_jax.files import parse_json, read_text
from bignas_jax.interop.imports.bignas_names import released_name
from bignas_jax.interop.imports.torch_file import read_checkpoint
from bignas_jax.spaces.ofa import OfaSpace

NET, RUN, WEIGHTS = "net.config", "run.config", "init"


def is_folder(path: str | pathlib.Path) -> bool:
    """Whether this is the folder of a specialised network."""
    return (pathlib.Path(path) / NET).is_file()


def specialised(options: Options, folder: str | pathlib.Path) -> tuple[Options, pathlib.Path]:
    """The options of a run of this network, and the file of its weights.

    The space has this network alone. Images are cropped as Once-for-All crops them: the short side is resized to
    R / 0.875, rounded up, and the middle R pixels are taken, where R is the `image_size` of `run.config`.

    Args:
      options: of a recipe of Once-for-All's families; the space, the classes and the sizes of images are replaced.
      folder: with the three files.
    Raises:
      WeightsError: a file cannot be read, or describes no network of Once-for-All's mobile families.
    """
    folder = pathlib.Path(folder)
    net, side = _json(folder / NET), _json(folder / RUN).get("image_size")
    if not isinstance(side, int) or isinstance(side, bool) or not 1 <= side < 10_000:
        raise WeightsError(f"{folder / RUN}: image_size: found {side!r}, expected pixels, such as 224")
    file = folder / WEIGHTS
    shapes = {released_name(name): tuple(t.shape) for name, t in read_checkpoint(file).tensors.items()}
    classifier = shapes.get("classifier.linear.weight", shapes.get("classifier.linear.linear.weight", ()))
    if len(classifier) != 2:
        raise WeightsError(f"{file}: found no classifier.linear.weight, expected the weights of {folder / NET}")
    try:
        space = _space(net, side, classifier[1])
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise WeightsError(
            f"{folder / NET}: {type(error).__name__}: {error}, expected a MobileNetV3 or ProxylessNAS network as "
            "Once-for-All writes it"
        ) from error
    data = dataclasses.replace(options.data, image_size=side, eval_resize=math.ceil(side / 0.875))
    model = dataclasses.replace(options.model, num_classes=classifier[0])
    return dataclasses.replace(options, space=space.to_dict(), data=data, model=model), file


def _json(path: pathlib.Path) -> dict[str, Any]:
    try:
        found = parse_json(read_text(path))
    except OSError as error:
        raise WeightsError(f"{path}: cannot read it ({error.strerror}), expected a JSON object") from error
    except FileError as error:
        raise WeightsError(f"{path}: {error}, expected a JSON object") from error
    if not isinstance(found, dict):
        raise WeightsError(f"{path}: found {type(found).__name__}, expected a JSON object")
    return found


def _space(net: Mapping[str, Any], side: int, head: int) -> OfaSpace:
    """The space with this network alone.

    Args:
      net: the content of `net.config`.
      side: side of the input in pixels.
      head: channels of the classifier's input.
    Raises:
      ValueError: a block is not as the family has it.
    """
    blocks = [(block.get("mobile_inverted_conv") or block["conv"], block.get("shortcut")) for block in net["blocks"]]
    stages = [_stage(stage) for stage in _stages(blocks)]
    first = blocks[0][0]
    space = OfaSpace.from_config(dict(
        resolution=(side,), stem_width=(first["in_channels"],), stem_stride=net["first_conv"].get("stride", 2),
        head_width=(head,), v3_head=bool(net.get("final_expand_layer")), activation=net["first_conv"]["act_func"],
        epsilon=float(net["bn"]["eps"]), kernel_transforms=False,
        stages={f"mb{number}": stage for number, stage in enumerate(stages)},
    ))  # fmt: skip
    layers = [layer for layer in space.layout(space.biggest) if layer.stage is not None]
    for number, ((conv, shortcut), layer) in enumerate(zip(blocks, layers, strict=True)):
        mid = layer.convs[-1].in_width
        wanted = conv["in_channels"], conv.get("mid_channels") or mid, conv["out_channels"], bool(shortcut)
        have = layer.in_width, mid, layer.out_width, layer.shortcut is not None
        if have != wanted:
            raise ValueError(f"blocks[{number}]: found input, middle and output channels and shortcut {wanted}, "
                             f"expected {have}")  # fmt: skip
    return space


def _stages(blocks: Sequence[tuple]) -> list[list[Mapping[str, Any]]]:
    """The convolutions of the blocks, stage by stage: a block without a shortcut begins a stage."""
    found: list[list] = []
    for conv, shortcut in blocks:
        if not found or not shortcut:
            found.append([])
        found[-1].append(conv)
    return found


def _stage(convs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The fields of a stage with these blocks."""
    first = convs[0]
    for name in ("act_func", "out_channels"):
        if len({conv[name] for conv in convs}) > 1:
            raise ValueError(f"{name}: found several in the blocks of a stage, expected one")
    gates = {bool(conv.get("use_se")) for conv in convs}
    if len(gates) > 1:
        raise ValueError("use_se: found both in the blocks of a stage, expected one")
    ratio = "expand_ratio"
    return dict(
        width=(first["out_channels"],), depth=(len(convs),), stride=first["stride"], se=gates.pop(),
        activation=first["act_func"], kernel_size=tuple((conv["kernel_size"],) for conv in convs),
        expand_ratio=tuple((conv[ratio],) for conv in convs),
    )  # fmt: skip
