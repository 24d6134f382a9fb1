"""Signals that a loop looks at, instead of being ended by them; and what several processes make of them."""

import os
import signal
import threading

import pytest

from bignas_jax.errors import Interrupted
from bignas_jax.runs import signals as signals_module
from bignas_jax.runs.signals import Signals, _agreed, _same_everywhere

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


def test_one_process_agrees_with_itself():
    assert _agreed(signal.SIGTERM) == signal.SIGTERM and _agreed(0) == 0
    assert _same_everywhere(True) is True and _same_everywhere(False) is False


@pytest.mark.parametrize("own, others, expected", [
    (0, (0, signal.SIGTERM), signal.SIGTERM), (signal.SIGINT, (0, 0), signal.SIGINT), (0, (0, 0), 0),
])  # fmt: skip
def test_several_processes_stop_for_a_signal_of_any(own, others, expected, monkeypatch):
    monkeypatch.setattr(signals_module, "gather", lambda value: [value, *others])
    assert _agreed(own) == expected


def test_several_processes_take_what_the_first_one_found(monkeypatch):
    for first in (True, False):
        monkeypatch.setattr(signals_module, "gather", lambda value, first=first: [first, value])
        assert [_same_everywhere(own) for own in (True, False)] == [first, first]
