"""One SIGINT or SIGTERM asks, a second SIGINT aborts, and the handlers are put back."""

import os
import signal
import threading

import pytest

from tunix.sft.loop import interrupt

BOTH = pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM], ids=lambda s: s.name)


def send(signum=signal.SIGINT):
    os.kill(os.getpid(), signum)


@BOTH
def test_the_first_signal_is_a_request(signum):
    with interrupt.graceful_interrupt() as stop:
        assert not stop.requested
        send(signum)
        assert stop.requested
        assert stop.signum == signum


def test_a_second_interrupt_aborts():
    with interrupt.graceful_interrupt():
        send()
        with pytest.raises(KeyboardInterrupt):
            send()


def test_a_scheduler_may_repeat_itself():
    with interrupt.graceful_interrupt() as stop:
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        assert stop.requested


@BOTH
def test_the_previous_handler_comes_back(signum):
    before = signal.getsignal(signum)
    with interrupt.graceful_interrupt():
        assert signal.getsignal(signum) is not before
        send(signum)
    assert signal.getsignal(signum) is before


def test_in_another_thread_it_does_nothing():
    seen = []

    def work():
        with interrupt.graceful_interrupt() as stop:
            seen.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


@pytest.fixture
def with_interrupts():
    """Has SIGINT as on a terminal: a job in the background inherits that it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("with_interrupts")
def test_an_import_ends_at_once_and_only_an_import():
    with interrupt.ending_at_once():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_who_ignores_interrupts_goes_on_ignoring_them():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupt.ending_at_once():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("with_interrupts")
def test_imports_in_another_thread_leave_the_handler_alone():
    seen = []

    def imports():
        with interrupt.ending_at_once():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=imports)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]
