"""The watch over the losses of a run."""

import math

import numpy as np
import pytest

from bignas_jax.training.plan import STAYS, Collapse, Watch

GUESSING = math.log(10)


def told(losses, classes=10):
    """The steps at which a collapse is told of."""
    collapse = Collapse(classes)
    return [(step, collapse.since) for step, pair in enumerate(losses, 1) if collapse.add(step, pair)]


def test_a_network_that_forgets_is_told_of_once():
    losses = [(GUESSING, GUESSING)] * 80 + [(1.0, 1.5)] * 5 + [(GUESSING, 2.29)] * 300
    assert told(losses) == [(85 + STAYS, 86)]


@pytest.mark.parametrize("losses", [
    [(GUESSING, GUESSING)] * 500,  # it has not learnt anything yet
    [(1.0, 1.5)] * 5 + [(GUESSING, 1.6)] * 500,  # one member still knows
    ([(1.0, 1.5)] * 5 + [(GUESSING, GUESSING)] * (STAYS - 1)) * 9,  # it comes back
    [(1.0, 1.5)] * 5 + [(0.97 * GUESSING, 0.97 * GUESSING)] * 500,
    [(float("nan"), float("nan"))] * 500,  # another fault, told elsewhere
], ids=["fresh", "one", "back", "near", "nan"])  # fmt: skip
def test_what_is_no_collapse(losses):
    assert told(losses) == []


def test_a_second_collapse_is_told_of_too():
    once = [(1.0, 1.5)] * 5 + [(GUESSING, GUESSING)] * 60
    assert [since for _, since in told(once * 2)] == [6, 71]


def test_the_watch_looks_a_little_later_and_at_all_when_drained():
    watch = Watch(limit=2, num_classes=10)

    def add(step, in_row, loss, drain=False):
        return watch.add(step, {"skipped_in_row": np.int32(in_row), "loss": np.array([loss, loss])}, drain)

    for step in range(1, 6):
        assert add(step, 0, 1.0) is None
    for step in range(6, 5 + STAYS):
        assert add(step, 0, GUESSING) is None
    assert not watch.collapsed
    add(5 + STAYS, 0, GUESSING, drain=True)
    assert watch.collapsed and watch.collapse.since == 6
    assert add(100, 1, GUESSING) is None and add(101, 2, GUESSING) is None
    assert add(102, 0, GUESSING, drain=True) == 101
