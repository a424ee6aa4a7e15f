"""Spans add up the time under their names."""

import threading

import jax.numpy as jnp
import pytest

from tunix.perf import span


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests move by hand."""

    class Clock:
        now = 0.0

    monkeypatch.setattr(span.time, "perf_counter", lambda: Clock.now)
    return Clock


def test_the_time_under_a_name_adds_up(clock):
    timer = span.SpanTimer()
    for seconds in (2.0, 3.0):
        with timer.span("rollout"):
            clock.now += seconds
    with timer.span("train"):
        clock.now += 1.0
    assert timer.totals() == {"rollout": 5.0, "train": 1.0}


def test_an_inner_span_is_named_after_the_outer_and_counts_in_both(clock):
    timer = span.SpanTimer()
    with timer.span("rollout"):
        clock.now += 1.0
        with timer.span("prefill") as inner:
            clock.now += 2.0
    assert inner.name == "rollout/prefill"
    assert timer.totals() == {"rollout": 3.0, "rollout/prefill": 2.0}


def test_taking_the_totals_starts_a_new_step(clock):
    timer = span.SpanTimer()
    with timer.span("train"):
        clock.now += 1.0
    assert timer.take() == {"train": 1.0}
    assert timer.take() == {}


def test_a_span_ends_when_its_body_raises(clock):
    timer = span.SpanTimer()

    def fail():
        with timer.span("train"):
            clock.now += 4.0
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with timer.span("score"):
        pass
    assert timer.totals() == {"train": 4.0, "score": 0.0}


def test_spans_of_threads_do_not_nest_in_each_other():
    timer, inside = span.SpanTimer(), threading.Barrier(4)

    def work(name):
        with timer.span(name), timer.span("part"):
            inside.wait(10)

    threads = [threading.Thread(target=work, args=(f"t{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(timer.totals()) == {f"t{i}" for i in range(4)} | {f"t{i}/part" for i in range(4)}


def test_a_span_waits_for_the_arrays_it_is_about(monkeypatch):
    waited = []
    monkeypatch.setattr(span.jax, "block_until_ready", waited.extend)
    timer, x = span.SpanTimer(), jnp.ones(3)
    with timer.span("score") as current:
        current.wait_for(x)
        assert waited == []
    assert waited == [x] or waited[0] is x
