"""Files of PyTorch checkpoints: every form is read to the same tensors, and nothing in a file is run."""

import argparse
import collections
import os
import pathlib
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
import safetensors.torch
import torch

from bignas_jax.errors import CheckpointError, WeightsError
from bignas_jax.interop.imports.torch_file import listed, read_checkpoint, to_float32

CONV, NORM = "blocks.0.mobile_inverted_conv.depth_conv.conv.conv.weight", "first_conv.bn.bn"
PLAIN = {
    "first_conv.conv.conv.weight": torch.arange(12.0).reshape(3, 4),
    f"{NORM}.running_var": torch.tensor([0.5, 1.5]),
    CONV: torch.tensor([[1.0, -2.0]]),
}


def released(plain=PLAIN, prefix="module."):
    """As released files have it: prefixes, twins in one storage, tracking copies, counters."""
    found = {prefix + name: tensor for name, tensor in plain.items()}
    found[prefix + CONV.replace("mobile_inverted_conv", "conv")] = plain[CONV]
    found[f"{prefix}{NORM}.num_batches_tracked"] = torch.tensor(3)
    return found | {f"{prefix}first_conv.bn.bn_tracking.{n}.running_var": torch.ones(1) for n in (0, 1)}


@pytest.fixture
def saved(tmp_path):
    def save(content, name="weights.pth", **how):
        torch.save(content, tmp_path / name, **how)
        return tmp_path / name

    return save


def assert_plain(read):
    assert read.tensors.keys() == PLAIN.keys()
    for name, tensor in PLAIN.items():
        assert torch.equal(read.tensors[name], tensor), name


WRAPPERS = {
    "": lambda state: state,
    "model_state": lambda state: {"model_state": state, "epoch": 360, "step": torch.tensor(7), "best": 79.6},
    "state_dict": lambda state: {"epoch": 12, "state_dict": collections.OrderedDict(state), "best": torch.tensor(0.7)},
    "model.module": lambda state: {"model": {"module": state, "note": "x"}},
    "ema.shadow": lambda state: {"ema": {"decay": 0.99, "shadow": state}},
}


@pytest.mark.parametrize("entry", WRAPPERS)
@pytest.mark.parametrize("prefix", ["", "module.", "module.module.", "_orig_mod.module."])
def test_wrappers_and_prefixes(entry, prefix, saved):
    read = read_checkpoint(saved(WRAPPERS[entry](released(prefix=prefix))))
    assert_plain(read)
    assert read.entry == entry
    assert sorted(read.ignored.values()) == [1, 1, 2]  # a counter, a twin, two tracking copies
    assert read.counters == {"model_state": {"epoch": 360}, "state_dict": {"epoch": 12}}.get(entry, {})


@pytest.mark.parametrize("name, how", [
    ("a.pt", {}), ("a.pth.tar", dict(_use_new_zipfile_serialization=False)), ("no_suffix", {}),
])  # fmt: skip
def test_both_forms_of_torch_save(name, how, saved):
    assert_plain(read_checkpoint(saved({"state_dict": released()}, name, **how)))


def test_safetensors(tmp_path):
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file({name: tensor.clone() for name, tensor in released().items()}, path)
    assert_plain(read_checkpoint(path))
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(WeightsError, match="not a whole safetensors file .*, expected .*; copy or download it again"):
        read_checkpoint(path)


def test_either_name_of_a_block_suffices(saved):
    both = released()
    for name in (CONV, CONV.replace("mobile_inverted_conv", "conv")):
        assert_plain(read_checkpoint(saved({k: v for k, v in both.items() if k != f"module.{name}"})))


def test_differing_twins_are_refused_by_name(saved):
    content = released()
    content["module." + CONV.replace("mobile_inverted_conv", "conv")] = PLAIN[CONV] + 1e-6
    with pytest.raises(WeightsError, match=rf"the two copies of 1 tensors differ \({CONV}\)"):
        read_checkpoint(saved(content))
    content["module." + CONV.replace("mobile_inverted_conv", "conv")] = PLAIN[CONV].T
    with pytest.raises(WeightsError, match="differ"):
        read_checkpoint(saved(content))
    content["module." + CONV.replace("mobile_inverted_conv", "conv")] = PLAIN[CONV].double()
    assert_plain(read_checkpoint(saved(content)))


def test_weights_or_their_moving_average(saved):
    average = {name: tensor * 2 for name, tensor in PLAIN.items()}
    path = saved({"state_dict": released(), "state_dict_ema": released(average)})
    with pytest.raises(WeightsError, match=r"weights \(state_dict\) and their .* \(state_dict_ema\), .*=ema"):
        read_checkpoint(path)
    assert_plain(read_checkpoint(path, "model"))
    ema = read_checkpoint(path, "ema")
    assert ema.entry == "state_dict_ema"
    assert torch.equal(ema.tensors[CONV], 2 * PLAIN[CONV])
    with pytest.raises(WeightsError, match="--weights: found ema, but .* holds only state_dict; leave the flag out"):
        read_checkpoint(saved({"state_dict": released()}), "ema")


class Evil:
    """What a file may do to its reader: it runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("new", [True, False])
def test_code_in_a_file_is_not_run(new, saved, tmp_path):
    path = saved({"state_dict": released(), "args": Evil(tmp_path / "ran")}, _use_new_zipfile_serialization=new)
    with pytest.raises(WeightsError, match="holds an object of posix.system .* could run code, expected tensors alone"):
        read_checkpoint(path)
    assert not (tmp_path / "ran").exists()
    torch.load(path, weights_only=False)  # what an unsafe reader does
    assert (tmp_path / "ran").exists()


def test_a_plain_pickle_with_code_is_not_run(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps({"state_dict": Evil(tmp_path / "ran")}, protocol=2))
    with pytest.raises(WeightsError):
        read_checkpoint(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("new", [True, False])
def test_settings_and_numbers_beside_the_weights_are_passed_over(new, saved):
    beside = {"args": argparse.Namespace(lr=0.1, names=["a"]), "top1": np.float64(0.79), "dtype": np.dtype("f4")}
    read = read_checkpoint(saved({"state_dict": released(), "epoch": 5, **beside}, _use_new_zipfile_serialization=new))
    assert_plain(read)
    assert read.counters == {"epoch": 5}


def test_settings_of_the_training_code_are_passed_over(tmp_path):
    """A class of the system's own, here a dictionary called utils.config.Config, that this process does not have."""
    (tmp_path / "utils").mkdir()
    (tmp_path / "utils" / "config.py").write_text(
        "class Config(dict):\n    def __getattr__(self, name):\n        return self[name]\n"
    )
    program = (
        "import torch; from utils.config import Config; "
        "torch.save({'state_dict': {'module.x.weight': torch.ones(2)}, 'args': Config(a=Config(b=1))}, 'weights.pth')"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    assert read_checkpoint(tmp_path / "weights.pth").tensors.keys() == {"x.weight"}
    assert "utils.config" not in sys.modules


def refused(path, contents: bytes, match: str) -> None:
    path.write_bytes(contents)
    with pytest.raises(CheckpointError, match=match) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(str(path)), message


def test_what_is_no_checkpoint(saved, tmp_path):
    path = tmp_path / "file"
    whole = saved(released()).read_bytes()
    old = saved(released(), _use_new_zipfile_serialization=False).read_bytes()
    again = "expected a PyTorch checkpoint: copy or download it again"
    refused(path, b"", f"is empty, {again}")
    for part in (0.1, 0.5, 0.95):
        refused(path, whole[: int(part * len(whole))], f"is a broken or truncated file, {again}")
        refused(path, old[: int(part * len(old))], f"is a broken or truncated file, {again}")
    refused(path, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull")
    refused(path, b"\n<!DOCTYPE html><title>404</title>", "is a web page, .* download the file itself")
    refused(path, b"some text\n" * 9, r"is not a file of torch.save, expected a PyTorch checkpoint \(.pth")
    refused(path, np.random.default_rng(0).bytes(5000), "is not a file of torch.save")
    with pytest.raises(OSError):
        read_checkpoint(tmp_path / "none.pth")


def test_an_archive_with_a_program_is_refused(tmp_path):
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "program.pt")
    with warnings.catch_warnings(action="error"):  # the message is the one line that the user sees
        with pytest.raises(WeightsError, match="is a TorchScript archive, expected a state_dict"):
            read_checkpoint(tmp_path / "program.pt")


@pytest.mark.parametrize("content, held", [
    ({"epoch": 3, "optimizer": {"lr": 1.0}}, "epoch, optimizer"), ([torch.ones(2)], "list"),
    ({}, "an empty dictionary"), ({"state_dict": {}}, "state_dict"),
])  # fmt: skip
def test_a_file_without_weights(content, held, saved):
    with pytest.raises(WeightsError, match=f"found no weights but {held}, expected a state_dict, alone or as one of"):
        read_checkpoint(saved(content))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float32])
def test_numbers_become_float32(dtype, saved):
    tensors = {name: (tensor * 0.25).to(dtype) for name, tensor in PLAIN.items()}
    path = saved(tensors)
    arrays = to_float32(path, read_checkpoint(path).tensors)
    for name, tensor in PLAIN.items():
        assert arrays[name].dtype == np.float32
        np.testing.assert_array_equal(arrays[name], 0.25 * tensor.numpy())  # exact in all of them


def quantised():
    with warnings.catch_warnings(action="ignore"):  # torch moves this elsewhere; files of it stay
        return torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)


@pytest.mark.parametrize("tensor, match", [
    (torch.tensor([1.0, float("nan")]), r"1 tensors hold NaN or infinity \(x\)"),
    (torch.tensor([-float("inf")]), r"1 tensors hold NaN or infinity \(x\)"),
    (torch.tensor([1e300], dtype=torch.float64), r"infinity \(x\), expected weights that are finite in float32"),
    (torch.tensor([1, 2]), r"1 tensors are no plain floating-point ones \(x: torch.int64\)"),
    (quantised(), r"\(x: torch.qint8\).* before they were quantised"),
    (torch.tensor([1j]), "x: torch.complex64"),
    (torch.eye(2).to_sparse(), "no plain floating-point"),
])  # fmt: skip
def test_numbers_that_are_none_are_refused_by_name(tensor, match):
    with pytest.raises(WeightsError, match=match):
        to_float32("weights.pth", PLAIN | {"x": tensor})


def test_negative_variances_are_refused():
    name = f"{NORM}.running_var"
    with pytest.raises(WeightsError, match=rf"1 variances are negative \({name}\)"):
        to_float32("weights.pth", PLAIN | {name: torch.tensor([0.5, -1e-3])})


def test_long_lists_are_cut():
    assert listed("abc") == "a, b, c"
    assert listed(map(str, range(13))) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, and 3 more"


def test_a_checkpoint_on_a_missing_gpu_is_read_on_the_cpu(saved):
    """Files say `cuda:0`; here such a name is written over the CPU's."""
    path = saved(released(), _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    assert b"X\x03\x00\x00\x00cpu" in data
    moved = pathlib.Path(f"{path}.cuda")
    moved.write_bytes(data.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0"))
    assert_plain(read_checkpoint(moved))
