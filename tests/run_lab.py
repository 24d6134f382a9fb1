"""Whole runs of the scripts in processes of their own, on digits and a space of two stages."""

import json
import os
import pathlib
import subprocess
import sys
import time

import forks
import jax
import numpy as np
import orbax.checkpoint as ocp
import xla_flags
from paths import ROOT

STEPS = 40
SHARED_CACHE = "BIGNAS_TESTS_CACHE"  # the variable that names the folder which conftest.py makes
# Two stages, one resolution, 1,000 images: seconds a run once its programs are compiled.
CONFIG = """
from ml_collections import ConfigDict
from configs import digits

def get_config():
    config = digits.get_config()
    stage = dict(depth=(1, 2), kernel_size=(3,), expand_ratio=(2,), se=False)
    config.space = ConfigDict(dict(
        resolution=(8,), stem_width=(8,), stem_stride=1, head_width=(16,), v3_head=False, activation="swish",
        stages=dict(mb1=dict(stage, width=(8, 16), stride=2), mb2=dict(stage, width=(16,), stride=2, se=True)),
    ))
    config.data.image_size = config.data.eval_resize = 8
    config.data.holdout = 200
    config.model.dropout, config.model.drop_connect = 0.2, 0.2
    config.sandwich.label_smoothing = 0.1
    config.sandwich.num_random = 1
    config.num_devices = 0
    config.batch_size, config.epochs = 48, 3
    config.optimizer.ema_decay = 0.9
    config.calibration.num_images, config.calibration.batch_size = 96, 48
    config.evaluation.every_epochs = 1.0
    config.checkpoint.every_steps, config.checkpoint.keep = 8, 2
    config.log.every_steps = 1
    config.max_steps = STEPS
    return config
""".replace("STEPS", str(STEPS))


def environment(
    lab: pathlib.Path, devices: int = 1, cache: pathlib.Path | None = None, flags: str = xla_flags.QUICK
) -> dict[str, str]:
    """The variables of a process of its own.

    Args:
      lab: the folder that it works in.
      devices: how many CPU devices it has.
      cache: the folder of compiled programs; by default one that all tests share (conftest.py), `lab`'s without it.
      flags: XLA's, besides the number of devices.
    """
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": str(cache or os.environ.get(SHARED_CACHE) or lab / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {flags}",
        "PYTHONPATH": str(ROOT),
    }


def start(lab, workdir, *arguments, script="train.py", devices=1, config="tiny.py", popen=forks.Popen):
    command = [sys.executable, str(ROOT / script), "--config", str(lab / config), "--workdir", str(workdir)]
    return popen(
        [*command, *arguments],
        env=environment(lab, devices),
        cwd=lab,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process, code=0) -> tuple[str, str]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, err[-3000:]
    return out, err


def signal_at(process, workdir, step, signum) -> None:
    """Sends a signal once the log has reached a step."""
    deadline = time.monotonic() + 300
    while len(records(workdir)) < step:
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline, f"step {step} was not reached"
        time.sleep(0.01)
    process.send_signal(signum)


def records(workdir) -> list[dict]:
    path = pathlib.Path(workdir) / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:  # a line that is being written
            break
    return found


def without_speed(rows: list[dict]) -> list[dict]:
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in rows]


def steps_of(workdir) -> list[int]:
    return sorted(int(p.name) for p in (pathlib.Path(workdir) / "checkpoints").iterdir() if p.name.isdigit())


def last_checkpoint(workdir) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint, read by orbax alone."""
    folder = pathlib.Path(workdir).absolute() / "checkpoints" / str(steps_of(workdir)[-1])
    arrays = {}
    for item in ("params", "ema", "training"):
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            form = reader.metadata(folder / item).item_metadata.tree
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), form)
            tree = reader.restore(folder / item, ocp.args.PyTreeRestore(restore_args=as_numpy))
        optimizer = tree.pop("optimizer", {})
        arrays |= {f"{item}.{name}": np.asarray(a) for name, a in (tree | optimizer).items()}
    return arrays


def assert_same_bits(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].tobytes() == value.tobytes(), name
