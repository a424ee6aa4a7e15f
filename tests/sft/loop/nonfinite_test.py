"""What is kept of steps that were skipped, and which trainings fail."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.sft import toys
from tunix.sft import peft_trainer
from tunix.sft.loop import nonfinite, step_handle, train_step


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


NO = float("nan")


def trained(optimizer, data, *, loss_fn=toys.squared_error, root=None, **settings):
    config = peft_trainer.TrainingConfig(
        eval_every_n_steps=100,
        pbar_description=None,
        checkpoint_root_directory=None if root is None else str(root),
        **settings,
    )
    model = toys.Linear(rngs=nnx.Rngs(0))
    trainer = peft_trainer.PeftTrainer(model, optimizer, config).with_loss_fn(loss_fn)
    try:
        trainer.train(data)
    finally:
        trainer.close()
    return trainer


def good(n):
    return [toys.regression(8, seed=seed) for seed in range(n)]


def bad():
    return toys.regression(8) | {"y": np.full(8, NO, np.float32)}


@pytest.mark.parametrize("steps", [1, 2, 9])
@pytest.mark.parametrize(
    "optimizer",
    [
        pytest.param(optax.sgd(NO), id="a rate that is no number"),
        pytest.param(optax.sgd(1e39), id="a rate that float32 cannot hold"),
        pytest.param(optax.adamw(0.1, weight_decay=NO), id="a decay that is no number"),
        pytest.param(
            optax.chain(optax.clip_by_global_norm(NO), optax.sgd(0.1)), id="a norm that is none"
        ),
        pytest.param(optax.scale_by_schedule(lambda step: step * NO), id="a schedule that is none"),
    ],
)
def test_a_training_whose_weights_are_no_numbers_fails_and_saves_none_of_them(
    optimizer, steps, tmp_path
):
    with pytest.raises(nonfinite.DivergedError, match="the weights are not finite"):
        trained(optimizer, good(steps), root=tmp_path)
    assert not [entry for entry in tmp_path.iterdir() if entry.name.isdigit()]


def test_weights_that_are_no_numbers_end_a_long_training_early():
    data = iter(good(1) * 1000)
    with pytest.raises(nonfinite.DivergedError):
        trained(optax.sgd(NO), data, max_inflight_computations=2)
    assert len(list(data)) > 990


@pytest.mark.parametrize(
    ("data", "fails"),
    [
        pytest.param([bad()], True, id="the only batch"),
        pytest.param([bad()] * 3, True, id="every batch"),
        pytest.param([*good(3), bad(), bad()], True, id="the last two"),
        pytest.param([*good(3), bad()], False, id="the last one alone is an accident"),
        pytest.param([*good(2), bad(), bad(), *good(1)], False, id="good ones follow"),
    ],
)
def test_a_training_that_ends_in_losses_that_are_no_numbers_fails(data, fails, tmp_path):
    if not fails:
        assert trained(optax.adam(0.1), data, root=tmp_path).train_steps == len(data)
        return
    for _ in range(2):  # and again when it is started again
        with pytest.raises(nonfinite.DivergedError, match="loss or gradient was not finite in"):
            trained(optax.adam(0.1), data, root=tmp_path)


def test_the_message_counts_the_steps_that_changed_nothing():
    with pytest.raises(nonfinite.DivergedError, match=r"in 3 of 5 steps, the last 2 in a row"):
        trained(optax.adam(0.1), [bad(), *good(2), bad(), bad()])
