"""What is kept of steps that were skipped."""

import logging

import jax
import jax.numpy as jnp
import numpy as np

from tunix.sft import nonfinite, step_handle, train_step


def step(number, status):
    metrics = {"status": status, "loss": np.nan, "grad_norm": 1.0}
    arrays = {name: jnp.asarray(value) for name, value in metrics.items()}
    return step_handle.StepHandle(number, arrays)


def test_batches_are_saved_so_that_numpy_can_read_them(tmp_path):
    watch = nonfinite.SkippedStepWatch(tmp_path, max_inflight=1)
    batch = {
        "tokens": np.arange(3),
        "nested": {"half": jnp.full(2, 1.5, jnp.bfloat16)},
        "key": jax.random.key(3),
    }
    watch.add(step(4, train_step.NONFINITE), [batch, {"tokens": np.ones(1)}])
    watch.flush()
    saved = np.load(tmp_path / "step_4.npz")
    assert sorted(saved.files) == ["0.key", "0.nested.half", "0.tokens", "1.tokens"]
    np.testing.assert_array_equal(saved["0.nested.half"], [1.5, 1.5])
    np.testing.assert_array_equal(saved["0.key"], [0, 3])


def test_only_the_first_batches_are_saved(tmp_path, caplog):
    watch = nonfinite.SkippedStepWatch(tmp_path, max_inflight=1)
    with caplog.at_level(logging.WARNING):
        for number in range(nonfinite.MAX_DUMPS + 2):
            watch.add(step(number, train_step.NONFINITE), [{"x": np.ones(1)}])
        watch.flush()
    assert len(list(tmp_path.iterdir())) == nonfinite.MAX_DUMPS
    assert caplog.text.count("its batch was not saved") == 2


def test_without_a_directory_the_message_says_how_to_get_one(caplog):
    watch = nonfinite.SkippedStepWatch(None, max_inflight=1)
    with caplog.at_level(logging.WARNING):
        watch.add(step(1, train_step.NONFINITE), [{}])
        watch.flush()
    assert "set metrics_logging_options.log_dir" in caplog.text


def test_good_steps_are_not_mentioned(tmp_path, caplog):
    watch = nonfinite.SkippedStepWatch(tmp_path, max_inflight=1)
    with caplog.at_level(logging.WARNING):
        watch.add(step(1, train_step.LEARNED), [{}])
        watch.flush()
    assert caplog.text == ""
    assert list(tmp_path.iterdir()) == []
