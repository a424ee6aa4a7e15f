"""The profiler records its window of steps and no other."""

import logging

import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from tests.sft import toys
from tunix.sft import peft_trainer, profiler
from tunix.utils import config as config_lib


@pytest.fixture
def calls(monkeypatch):
    seen = []
    monkeypatch.setattr(
        profiler.jax.profiler,
        "start_trace",
        lambda log_dir, profiler_options: seen.append(("start", log_dir, profiler_options)),
    )
    monkeypatch.setattr(profiler.jax.profiler, "stop_trace", lambda: seen.append("stop"))
    return seen


def options(**changes):
    settings = {"log_dir": "d", "skip_first_n_steps": 2, "profiler_steps": 3}
    return profiler.ProfilerOptions(**(settings | changes))


def window(profile, steps):
    seen = []
    for step in range(steps):
        profile.maybe_activate(step)
        seen.append(profile._active)
        profile.maybe_deactivate(step + 1)
    return [i + 1 for i, active in enumerate(seen) if active]


def test_the_window_opens_after_the_skipped_steps(calls):
    assert window(profiler.Profiler(0, None, options()), 10) == [3, 4, 5]
    assert [c if c == "stop" else c[0] for c in calls] == ["start", "stop"]


def test_on_a_resumed_run_it_counts_from_where_this_process_began(calls):
    assert window(profiler.Profiler(4, None, options()), 10) == [7, 8, 9]


def test_it_opens_and_closes_where_steps_are_taken_several_at_a_time(calls):
    profile, open_at = profiler.Profiler(0, None, options()), []
    for step in range(0, 10, 4):
        profile.maybe_activate(step)
        open_at.append((step, profile._active))
        profile.maybe_deactivate(step + 4)
    # The window of steps 3 to 5: the next that begin are 5 to 8.
    assert open_at == [(0, False), (4, True), (8, False)]
    assert calls == [("start", "d", calls[0][2]), "stop"]


def test_without_options_nothing_is_recorded(calls):
    assert window(profiler.Profiler(0, None, None), 10) == []
    assert calls == []


def test_the_tracer_levels_are_passed_on(calls):
    profile = profiler.Profiler(0, None, options(host_tracer_level=3, python_tracer_level=0))
    profile.maybe_activate(2)
    assert calls[0][2].host_tracer_level == 3
    assert calls[0][2].python_tracer_level == 0
    profile = profiler.Profiler(0, None, options(set_profile_options=False))
    profile.maybe_activate(2)
    assert calls[1] == ("start", "d", None)


def test_a_window_beyond_the_run_is_reported(caplog):
    with caplog.at_level(logging.WARNING):
        profiler.Profiler(0, 4, options())
    assert "steps 3 to 5 but the run ends at step 4" in caplog.text


def test_all_problems_are_listed():
    with pytest.raises(config_lib.ConfigError) as error:
        options(skip_first_n_steps=-1, profiler_steps=0)
    assert len(error.value.problems) == 2


def test_a_training_leaves_a_trace(tmp_path):
    config = peft_trainer.TrainingConfig(
        eval_every_n_steps=1,
        pbar_description=None,
        profiler_options=options(
            log_dir=str(tmp_path), skip_first_n_steps=1, profiler_steps=1, python_tracer_level=0
        ),
    )
    trainer = peft_trainer.PeftTrainer(toys.Linear(rngs=nnx.Rngs(0)), optax.sgd(0.1), config)
    trainer.with_loss_fn(lambda model, x, y, weights: jnp.mean(model(x)))
    trainer.train([toys.regression(2)] * 4)
    assert list(tmp_path.rglob("*.xplane.pb"))
