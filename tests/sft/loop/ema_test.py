"""The average is that of the formula, is saved, and steps aside for the parameters."""

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from tests.sft import toys
from tunix.sft import peft_trainer
from tunix.sft.loop import ema


def trainer(directory=None, decay=0.75, optimizer=None):
    config = peft_trainer.TrainingConfig(
        eval_every_n_steps=1,
        pbar_description=None,
        checkpoint_root_directory=None if directory is None else str(directory),
        checkpointing_options=ocp.CheckpointManagerOptions(save_interval_steps=2),
    )
    optimizer = optimizer or ema.with_ema(optax.adam(0.1), decay)
    model = toys.Linear(rngs=nnx.Rngs(0))
    return peft_trainer.PeftTrainer(model, optimizer, config).with_loss_fn(toys.squared_error)


def batches(n, start=0):
    return [toys.regression(4, seed=seed) for seed in range(start, start + n)]


def test_the_average_follows_the_parameters_by_its_formula():
    run = trainer()
    expected = np.asarray(run.model.w[...])
    plain = trainer(optimizer=optax.adam(0.1))
    for batch in batches(5):
        run.step_on([batch])
        plain.step_on([batch])
        expected = 0.75 * expected + 0.25 * np.asarray(run.model.w[...])
    np.testing.assert_allclose(run.state.opt_state.average["w"], expected, rtol=1e-5)
    toys.assert_bit_identical(run.state.params, plain.state.params)


def test_a_step_that_is_skipped_leaves_the_average():
    run = trainer()
    run.step_on(batches(1))
    before = jax.device_get(run.state.opt_state)
    run.step_on([toys.regression(4) | {"y": np.full(4, np.nan, np.float32)}])
    toys.assert_bit_identical(run.state.opt_state, before)


def test_the_average_can_be_evaluated_and_read_from_the_model():
    run = trainer()
    run.train(batches(4))
    held_out = batches(1, start=50)
    of_params, params = run.evaluate(held_out)["loss"], jax.device_get(run.state.params)
    average = np.asarray(run.state.opt_state.average["w"])
    with ema.averaged(run):
        np.testing.assert_array_equal(run.model.w[...], average)
        of_average = run.evaluate(held_out)["loss"]
    x, y, weights = (held_out[0][name] for name in ("x", "y", "weights"))
    error = (x @ average + float(run.state.opt_state.average["b"]) - y) ** 2
    np.testing.assert_allclose(of_average, (error * weights).sum() / weights.sum(), rtol=1e-5)
    assert abs(of_average - of_params) > 1e-4
    toys.assert_bit_identical(run.state.params, params)
    np.testing.assert_array_equal(run.model.w[...], params["w"])
    run.train(batches(1))  # what was swapped was not donated


def test_a_resumed_run_has_the_same_average(tmp_path):
    whole = trainer()
    whole.train(batches(6))
    first = trainer(tmp_path)
    first.train(batches(4))
    first.close()
    second = trainer(tmp_path)
    second.train(batches(6))
    toys.assert_bit_identical(second.state.opt_state, whole.state.opt_state)
    second.close()


def test_without_an_average_the_message_says_how_to_get_one():
    with (
        pytest.raises(TypeError, match=r"make the trainer with ema\.with_ema"),
        ema.averaged(trainer(optimizer=optax.sgd(0.1))),
    ):
        pass
    with pytest.raises(ValueError, match=r"must lie between 0 and 1, got 1\.0"):
        ema.with_ema(optax.sgd(0.1), 1.0)
