"""One SIGINT asks, a second one aborts, and the handler is put back."""

import os
import signal
import threading

import pytest

from tunix.sft import interrupt


def send():
    os.kill(os.getpid(), signal.SIGINT)


def test_the_first_interrupt_is_a_request():
    with interrupt.graceful_interrupt() as stop:
        assert not stop.requested
        send()
        assert stop.requested


def test_the_second_one_aborts():
    with interrupt.graceful_interrupt():
        send()
        with pytest.raises(KeyboardInterrupt):
            send()


def test_the_previous_handler_comes_back():
    before = signal.getsignal(signal.SIGINT)
    with interrupt.graceful_interrupt():
        assert signal.getsignal(signal.SIGINT) is not before
        send()
    assert signal.getsignal(signal.SIGINT) is before


def test_in_another_thread_it_does_nothing():
    seen = []

    def work():
        with interrupt.graceful_interrupt() as stop:
            seen.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
