"""Signals that a loop looks at, instead of being ended by them; and what several processes make of them."""

import os
import signal
import threading

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from bignas_jax.errors import Interrupted
from bignas_jax.runs.signals import AGREE_EVERY, Signals, _agreed, _same_everywhere

BOTH = signal.SIGTERM, signal.SIGINT


def handlers():
    return [signal.getsignal(signum) for signum in BOTH]


@pytest.fixture
def ours():
    """Handlers of the test's own, that note what reaches them."""
    came, before = [], handlers()
    for signum in BOTH:
        signal.signal(signum, lambda number, _: came.append(number))
    yield came
    for signum, handler in zip(BOTH, before, strict=True):
        signal.signal(signum, handler)


@pytest.mark.parametrize("signum", BOTH)
def test_a_signal_is_noted_inside_and_goes_where_it_went_before_outside(signum, ours):
    with pytest.raises(Interrupted) as ended, Signals() as signals:
        assert signals.received == 0
        signals.tick()
        os.kill(os.getpid(), signum)
        assert signals.received == signum and ours == []
        # Whoever does not look again learns of it at the end.
    assert ended.value.signum == signum and ended.value.exit_code == 128 + signum
    os.kill(os.getpid(), signum)
    assert ours == [signum] and signals.received == signum


def test_the_handlers_come_back_after_an_error(ours):
    before = handlers()
    with pytest.raises(ZeroDivisionError), Signals():
        assert handlers() != before
        raise ZeroDivisionError
    assert handlers() == before


def test_a_second_interrupt_ends_at_once_and_other_pairs_do_not(ours):
    pairs = [(first, second) for first in BOTH for second in BOTH if (first, second) != (signal.SIGINT, signal.SIGINT)]
    for first, second in pairs:
        with pytest.raises(Interrupted), Signals() as signals:
            os.kill(os.getpid(), first)
            os.kill(os.getpid(), second)
            assert signals.received == second, (first, second)
            signals.tick()
    with pytest.raises(Interrupted), Signals():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the second one did not interrupt")
    assert ours == []


def test_a_thread_that_may_set_no_handler_goes_without(ours):
    found = []

    def work():
        with Signals() as signals:
            found.append((signals.received, handlers()))

    before = handlers()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(0, before)] and handlers() == before


def test_one_process_agrees_with_itself_at_every_step():
    assert [_agreed(signal.SIGTERM, step) for step in range(1, 4)] == [signal.SIGTERM] * 3
    assert _agreed(0, AGREE_EVERY) == 0
    assert _same_everywhere(True) is True and _same_everywhere(False) is False


class Processes:
    """What this process, the first of three, would learn from the collectives of JAX."""

    def __init__(self, others):
        self.others, self.asked = others, 0

    def process_allgather(self, value):
        self.asked += 1
        return np.stack([value, *map(np.int32, self.others)])


@pytest.mark.parametrize("own, others, expected", [
    (0, (0, signal.SIGTERM), signal.SIGTERM), (signal.SIGINT, (0, 0), signal.SIGINT), (0, (0, 0), 0),
])  # fmt: skip
def test_several_processes_ask_every_so_many_steps_and_stop_for_any(own, others, expected, monkeypatch):
    processes = Processes(others)
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(multihost_utils, "process_allgather", processes.process_allgather)
    found = {step: _agreed(own, step) for step in range(1, 2 * AGREE_EVERY + 1)}
    assert {step for step, value in found.items() if value} <= {AGREE_EVERY, 2 * AGREE_EVERY}
    assert found[AGREE_EVERY] == found[2 * AGREE_EVERY] == expected
    # As many questions as the other processes ask, whether or not a signal came here: otherwise they wait for ever.
    assert processes.asked == 2


def test_several_processes_take_what_the_first_one_found(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for first in (True, False):
        monkeypatch.setattr(multihost_utils, "broadcast_one_to_all", lambda _, first=first: np.int32(first))
        assert [_same_everywhere(own) for own in (True, False)] == [first, first]
