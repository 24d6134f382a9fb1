"""Programs kept from run to run: found where they are the same, and never where a user's own class has changed."""

import sys

import forks
import pytest
from paths import ROOT
from run_lab import CONFIG, environment, records

LOSS = """
from bignas_jax.ops.losses import cross_entropy

class Loss:
    metrics = ()

    def __init__(self, recipe):
        pass

    def __call__(self, logits, targets, teacher_logits):
        return FACTOR * cross_entropy(logits, targets), {}
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("programs")
    (folder / "tiny.py").write_text(CONFIG)
    run(folder, "first")
    return folder


def run(lab, workdir, *arguments):
    command = [sys.executable, str(ROOT / "train.py"), "--config", str(lab / "tiny.py"), "--workdir",
               str(lab / workdir), "--config.max_steps=3", *arguments]  # fmt: skip
    surroundings = environment(lab, cache=lab / "cache") | {"PYTHONPATH": f"{ROOT}:{lab}"}
    done = forks.run(command, env=surroundings, cwd=lab, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return records(lab / workdir)


def kept(lab):
    return {path.name for path in (lab / "cache").rglob("*.name")}


def test_what_does_not_matter_finds_the_programs_and_what_matters_does_not(lab):
    before = kept(lab)
    assert before
    run(lab, "logs", "--config.log.every_steps=2", "--config.checkpoint.keep=1", "--config.evaluation.every_epochs=2.0")
    assert kept(lab) == before
    run(lab, "dropout", "--config.model.dropout=0.3")
    assert len(kept(lab) - before) > 0


def test_an_edited_loss_is_the_one_that_runs(lab):
    def losses(factor, workdir):
        (lab / "own_loss.py").write_text(LOSS.replace("FACTOR", factor))
        rows = run(lab, workdir, "--config.sandwich.loss=own_loss:Loss")
        return next(row["loss/biggest"] for row in rows if "loss/biggest" in row)

    one = losses("1.0", "one")
    assert losses("3.0", "three") == pytest.approx(3 * one, rel=1e-5)
