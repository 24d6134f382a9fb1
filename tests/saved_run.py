"""A run's folder with random weights, made without training."""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from bignas_jax.config import fields as config_lib
from bignas_jax.config.files import to_json
from bignas_jax.programs.weights import build
from bignas_jax.runs.checkpoint import Checkpoints
from bignas_jax.spaces.mobilenet import SearchSpace
from bignas_jax.step.state import TrainState
from configs import digits


def tiny_config():
    config = digits.get_config()
    stage = dict(depth=(1,), kernel_size=(3, 5), expand_ratio=(2,), se=True)
    config.space = ConfigDict(dict(
        resolution=(8, 11), stem_width=(8,), stem_stride=1, head_width=(16,), v3_head=False, activation="swish",
        stages=dict(mb1=dict(stage, width=(8, 16), depth=(1, 2), stride=2)),
    ))  # fmt: skip
    config.num_devices = 1
    config.data.update(image_size=10, eval_resize=12, holdout=40)
    config.calibration.update(num_images=96, batch_size=48)
    config.evaluation.batch_size = 16
    return config


def save(folder, config, steps=(7,)):
    """A run's folder with random weights: every scale and bias counts, later steps have other weights."""
    folder.mkdir()
    (folder / "config.json").write_text(to_json(config_lib.canonical(config)))
    _, params = build(SearchSpace.from_config(config.space), config.model.num_classes, seed=1)
    leaves, form = jax.tree.flatten(params)
    checkpoints = Checkpoints(folder, keep=len(steps))
    zero = jnp.int32(0)
    for step in steps:
        rng = np.random.default_rng(step)
        drawn = [leaf + 0.3 * rng.standard_normal(leaf.shape).astype(np.float32) for leaf in leaves]
        weights = jax.tree.unflatten(form, drawn)
        counters = {"step": jnp.int32(step), "skipped": zero, "skipped_in_row": zero}
        state = TrainState(params=weights, opt_state=(zero,), ema=None, **counters)
        checkpoints.save(state, step)
        checkpoints.wait()
    checkpoints.close()
    return folder
