"""A whole run whose members forget what they knew, and what `config.on_collapse=stop` leaves of it."""

import math

import jax.numpy as jnp
import pytest
from run_lab import CONFIG, records, steps_of

from bignas_jax.config.options import Options
from bignas_jax.config.recipes import load_config
from bignas_jax.errors import TrainingError
from bignas_jax.step.train_step import TrainStep
from bignas_jax.training import loop
from bignas_jax.training.plan import STAYS

SINCE = 13


def options(tmp_path, steps):
    (tmp_path / "tiny.py").write_text(CONFIG)
    config = load_config(tmp_path / "tiny.py")
    config.max_steps, config.epochs, config.num_devices, config.on_collapse = steps, 9, 1, "stop"
    config.checkpoint.every_steps, config.checkpoint.keep = 4, 99
    config.evaluation.every_epochs = 9.0
    return Options.of(config)


def test_the_run_goes_back_to_the_weights_from_before_even_if_it_was_begun_anew_meanwhile(tmp_path, monkeypatch):
    step_of = TrainStep.__call__

    def forgets(self, state, batch, step):
        state, metrics = step_of(self, state, batch, step)
        loss = 1.0 if step + 1 < SINCE else math.log(10)
        return state, metrics | {"loss": jnp.full_like(metrics["loss"], loss)}

    monkeypatch.setattr(TrainStep, "__call__", forgets)
    loop.train(options(tmp_path, 30), tmp_path / "run", progress=False)
    # The loss of step 13 is that of the weights of step 12.
    told = rf"ln\(10\) = 2.30, what guessing gives, since step {SINCE}; the last .* from before that is step 8 in"
    with pytest.raises(TrainingError, match=told):
        loop.train(options(tmp_path, 90), tmp_path / "run", progress=False)
    assert steps_of(tmp_path / "run")[-1] == 8
    assert SINCE + STAYS - 1 <= records(tmp_path / "run")[-1]["step"] <= SINCE + STAYS + 4
