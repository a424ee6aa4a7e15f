"""Counting compilations."""

import jax
import jax.monitoring
import jax.numpy as jnp

from tunix.perf import compile_counter


def fresh():
    """A function that has not been compiled yet."""

    def some_program(x):
        return x * 2.0 + 1.0

    return jax.jit(some_program)


def test_new_shapes_count_and_known_ones_do_not():
    program, small, large = fresh(), jnp.ones(3), jnp.ones(4)
    with compile_counter.CompileCounter() as counter:
        program(small)
        program(small)
        assert counter.names == ("jit(some_program)",)
        program(large)
    assert counter.count == 2
    assert counter.seconds > 0


def test_it_counts_only_inside_the_with_statement():
    program = fresh()
    with compile_counter.CompileCounter() as counter:
        pass
    program(jnp.ones(5))
    assert counter.count == 0


def test_counters_nest():
    program, x = fresh(), jnp.ones(6)
    with compile_counter.CompileCounter() as outer:
        with compile_counter.CompileCounter() as inner:
            pass
        program(x)
    assert (outer.count, inner.count) == (1, 0)


def test_listeners_of_others_stay():
    seen = []

    def listener(event, duration, **details):
        seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listener)
    with compile_counter.CompileCounter():
        pass
    fresh()(jnp.ones(7))
    jax.monitoring.unregister_event_duration_listener(listener)
    assert seen
