"""Reads PyTorch checkpoints as one state dict with the released names, without running code in the files."""

import collections
import dataclasses
import pathlib
import re
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch

from bignas_jax.errors import FileError, WeightsError
from bignas_jax.files import check_regular
from bignas_jax.interop.imports.bignas_names import released_name

# The names that a file may use for its weights and for their moving average. Entries may be nested.
MODEL = ("model_state", "state_dict", "model_state_dict", "model", "network", "net", "module", "shadow")
EMA = ("ema", "state_dict_ema", "ema_state_dict", "model_ema", "ema_state", "ema_model")
COUNTERS = ("epoch", "step", "iteration", "global_step", "num_updates")
SHOWN = 10  # names in one message


@dataclasses.dataclass(frozen=True)
class StateDict:
    """The weights of a file.

    Attributes:
      tensors: tensors on the CPU, by released name. They may be mapped from the file.
      entry: the file's entry that held them, such as `state_dict`; empty if the file held nothing else.
      ignored: how many entries of each kind were ignored.
      counters: the epoch or the steps that the file states.
    """

    tensors: Mapping[str, torch.Tensor]
    entry: str
    ignored: Mapping[str, int]
    counters: Mapping[str, int]


def read_checkpoint(path: str | pathlib.Path, weights: str = "") -> StateDict:
    """The state dict in a .pth, .pt, .tar or .safetensors file.

    Args:
      path: the file.
      weights: 'model' or 'ema', if the file has both the weights and their moving average.
    Raises:
      WeightsError: the file cannot be read, it holds code, or it has no weights; one line.
    """
    path = pathlib.Path(path)
    try:
        check_regular(path)
    except FileError as error:
        raise WeightsError(f"{path}: {error} of weights") from error
    content = _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)
    entry, mapping = _choose(path, content, weights)
    tensors, ignored = _released(path, mapping)
    counters = content if isinstance(content, Mapping) else {}
    return StateDict(tensors, entry, ignored, {k: v for k, v in counters.items() if k in COUNTERS and type(v) is int})


def _safetensors(path: pathlib.Path) -> Mapping[str, torch.Tensor]:
    try:
        with open(path, "rb"):  # an error of the system, which the library tells in its own words
            return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, ValueError, KeyError, OverflowError, RuntimeError) as error:
        raise WeightsError(
            f"{path}: not a whole safetensors file ({error}), expected a PyTorch checkpoint; copy or download it again"
        ) from error


class _Settings:
    """Replaces a settings dictionary that has a class of its own: it makes a plain dictionary."""

    def __new__(cls, *_):
        return collections.OrderedDict()


class _Nothing:
    """Replaces an object whose value does not matter: it takes any arguments and does nothing."""

    def __new__(cls, *_):
        return object.__new__(cls)

    def __setstate__(self, _):
        pass


# Objects that training code often saves beside the weights. They are read as these stand-ins, which run none of their
# code. `utils.config` is the module of AttentiveNAS's settings.
_STAND_INS = [
    (_Settings, "utils.config.Config"),
    (_Settings, "utils.config.AttrDict"),
    (_Settings, "easydict.EasyDict"),
    (_Nothing, "argparse.Namespace"),
    (_Nothing, "numpy.core.multiarray.scalar"),
    (_Nothing, "numpy._core.multiarray.scalar"),
    (_Nothing, "numpy.dtype"),
]


def _pickled(path: pathlib.Path) -> Any:
    """The content of a file of torch.save. Its loader for weights builds only tensors and containers."""
    with open(path, "rb") as file:  # reading first shows a disk's errors: torch raises OSError for bad content, too
        start = file.read(64)
    is_zip = zipfile.is_zipfile(path)
    try:
        with torch.serialization.safe_globals(_STAND_INS), warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # noqa: BLE001 - of damaged files, its reader raises struct.error and any other
        raise WeightsError(f"{path}: {_reason(str(error), start, is_zip)}") from error


def _reason(message: str, start: bytes, is_zip: bool) -> str:
    """Why torch.load refused a file, and what to do."""
    code = re.search(r"GLOBAL (\S+) was not an allowed|unsupported GLOBAL (\S+)|unrecognized function (\S+)", message)
    if code:
        name = next(group for group in code.groups() if group)
        return (
            f"holds an object of {name} beside plain weights, which could run code, expected tensors alone; where you "
            "trust the file, save its weights once more without it: import torch; torch.save({'state_dict': "
            "torch.load(FILE, weights_only=False)['state_dict']}, 'weights.pth')"
        )
    if "TorchScript" in message:
        return "is a TorchScript archive, expected a state_dict as torch.save writes it"
    if ".tar format" in message:
        return "is in the format of PyTorch before 0.2, expected a later one: load and save it again with torch"
    if start.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, expected the file itself: run git lfs pull"
    if start.lstrip()[:1] == b"<":
        return "is a web page, expected a PyTorch checkpoint: download the file itself"
    if not start:
        return "is empty, expected a PyTorch checkpoint: copy or download it again"
    if start.startswith((b"PK", b"\x80")):
        kind = "zip archive" if is_zip else "file"
        return f"is a broken or truncated {kind}, expected a PyTorch checkpoint: copy or download it again"
    return "is not a file of torch.save, expected a PyTorch checkpoint (.pth, .pt, .tar) or .safetensors"


def _choose(path: pathlib.Path, content: Any, weights: str) -> tuple[str, Mapping[str, Any]]:
    """The entry with the wanted weights, and the state dict in it."""
    model, ema = _find(content, MODEL), _nested(content, EMA)
    if model is None and ema is None:
        held = ", ".join(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
        raise WeightsError(
            f"{path}: found no weights but {_short(held) or 'an empty dictionary'}, expected a state_dict, alone or as "
            f"one of {', '.join(MODEL[:4])}, {EMA[0]}"
        )
    if not weights and model and ema:
        own = model[0] or "at its top"
        raise WeightsError(
            f"{path}: holds weights ({own}) and their moving average ({ema[0]}), expected a choice: --weights=ema "
            "(mostly the better to evaluate) or --weights=model"
        )
    chosen = {"model": model, "ema": ema, "": model or ema}[weights]
    if chosen is None:
        other = (model or ema)[0] or "the tensors themselves"
        raise WeightsError(f"--weights: found {weights}, but {path} holds only {other}; leave the flag out")
    return chosen


def _short(text: str, limit: int = 200) -> str:
    return text if len(text) <= limit else text[:limit] + "..."


def _find(content: Any, names: tuple[str, ...]) -> tuple[str, Mapping[str, Any]] | None:
    """(dotted entry, state dict), from the first of `names` that has one, or from `content` itself. None if neither."""
    if not isinstance(content, Mapping):
        return None
    # Entries come first, because a wrapper may have tensors of its own, such as the best accuracy.
    found = _nested(content, names)
    if found is None and any(isinstance(value, torch.Tensor) for value in content.values()):
        return "", content
    return found


def _nested(content: Any, names: tuple[str, ...]) -> tuple[str, Mapping[str, Any]] | None:
    for name in names if isinstance(content, Mapping) else ():
        found = _find(content.get(name), MODEL)
        if found is not None:
            return f"{name}.{found[0]}".rstrip("."), found[1]
    return None


def _released(path: pathlib.Path, mapping: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    """The tensors, each with one name, and how many entries of each kind were left out.

    Raises:
      WeightsError: a tensor has two names, and their values differ.
    """
    tensors, ignored, differing = {}, collections.Counter(), []
    for given, tensor in mapping.items():
        name = released_name(str(given))
        if "bn_tracking" in name:
            ignored["tracking copies (bn_tracking)"] += 1
        elif name.endswith("num_batches_tracked"):
            ignored["counters (num_batches_tracked)"] += 1
        elif not isinstance(tensor, torch.Tensor):
            ignored["entries that are no tensors"] += 1
        elif name not in tensors:
            tensors[name] = tensor
        elif _equal(tensors[name], tensor):
            ignored["twins (a tensor's second name)"] += 1
        else:
            differing.append(name)
    if differing:
        raise WeightsError(
            f"{path}: the two copies of {len(differing)} tensors differ ({listed(differing)}), expected twins "
            "(blocks.N.conv and blocks.N.mobile_inverted_conv, with or without module.) to be equal; "
            "save the state dict of one model"
        )
    return tensors, dict(ignored)


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.shape != b.shape:
        return False
    if a.data_ptr() == b.data_ptr() and a.stride() == b.stride() and a.dtype == b.dtype:
        return True
    return bool(torch.isclose(a.double(), b.double(), rtol=0, atol=0, equal_nan=True).all())


def listed(names, limit: int = SHOWN, between: str = ", ") -> str:
    """The first `limit` names, and how many more there are."""
    names = list(names)
    more = [f"and {len(names) - limit} more"] if len(names) > limit else []
    return between.join([*names[:limit], *more])


def to_float32(path: str | pathlib.Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """The tensors as NumPy arrays. float16, bfloat16 and float64 become float32.

    Raises:
      WeightsError: a tensor holds whole numbers, weights that are not finite, or negative variances.
    """
    other = [f"{name}: {tensor.dtype}" for name, tensor in tensors.items() if not _is_plain(tensor)]
    if other:
        raise WeightsError(
            f"{path}: {len(other)} tensors are no plain floating-point ones ({listed(other)}), expected float32, "
            "float16, bfloat16 or float64; save the weights from before they were quantised"
        )
    arrays = {name: tensor.detach().to(torch.float32).numpy() for name, tensor in tensors.items()}
    bad = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if bad:
        raise WeightsError(
            f"{path}: {len(bad)} tensors hold NaN or infinity ({listed(bad)}), expected weights that are finite in "
            "float32; take a checkpoint from before training failed"
        )
    negative = [name for name, array in arrays.items() if name.endswith("running_var") and (array < 0).any()]
    if negative:
        raise WeightsError(
            f"{path}: {len(negative)} variances are negative ({listed(negative)}), expected none below 0; the file is "
            "damaged, copy or download it again"
        )
    return arrays


def _is_plain(tensor: torch.Tensor) -> bool:
    return tensor.layout is torch.strided and tensor.is_floating_point()
