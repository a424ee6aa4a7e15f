"""A bar appears where somebody looks, and only when there is something to wait for."""

import io
import itertools
import sys

import pytest

from tunix.models import load_progress


class Terminal(io.StringIO):
    def __init__(self, is_terminal):
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self):
        return self.is_terminal


@pytest.mark.parametrize(
    ("is_terminal", "seconds", "shown"),
    [(True, 0.6, True), (True, 0.1, False), (False, 0.6, False)],
    ids=["slow", "fast", "no terminal"],
)
def test_a_bar_is_shown_on_a_terminal_after_a_second(is_terminal, seconds, shown, monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal(is_terminal))
    monkeypatch.setenv("TERM", "xterm")
    ticks = itertools.count()
    items = load_progress.shown(
        "abcd", [10, 20, 30, 40], "loading x", clock=lambda: next(ticks) * seconds
    )
    assert list(items) == list("abcd")
    assert ("loading x" in terminal.getvalue()) is shown


def test_an_error_of_the_caller_ends_the_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal(True))
    items = load_progress.shown("ab", [1, 1], "loading x", clock=itertools.count().__next__)
    assert next(items) == "a"
    assert next(items) == "b"
    items.close()
