"""Training ends when evaluations stop improving, also across a resume; the best is kept."""

import logging

import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from tests.sft import toys
from tunix.sft import loss_output, peft_trainer
from tunix.sft.checkpoints import best_checkpoint
from tunix.sft.loop import early_stopping
from tunix.utils import config as config_lib


def stopper(values, **settings):
    settings = early_stopping.EarlyStoppingConfig(**({"patience": 2} | settings))
    stopping = early_stopping.EarlyStopping(settings)
    for step, value in enumerate(values, start=1):
        stopping.update({"loss": value, "score": value}, step)
    return stopping


@pytest.mark.parametrize(
    ("values", "settings", "is_over"),
    [
        pytest.param([3, 2, 1], {}, False, id="it gets better"),
        pytest.param([1, 2, 3], {}, True, id="it gets worse twice"),
        pytest.param([2, 3, 1, 2], {}, False, id="once is not twice"),
        pytest.param([1, 2, 3], {"mode": "max"}, False, id="more is better"),
        pytest.param([3, 3, 3], {"mode": "max"}, True, id="the same is no improvement"),
        pytest.param([3, 2.95, 2.9], {"min_delta": 0.5}, True, id="too little improvement"),
        pytest.param([3, 2.7, 2.4], {"min_delta": 0.5}, False, id="little by little enough"),
        pytest.param([float("nan")] * 2, {}, True, id="NaN is no improvement"),
        pytest.param([float("nan"), 5.0], {}, False, id="a number is better than NaN"),
    ],
)
def test_when_it_is_over(values, settings, is_over):
    assert stopper(values, **settings).is_over is is_over


def test_the_state_is_all_there_is():
    one = stopper([2.0, 1.0, 3.0])
    other = early_stopping.EarlyStopping(early_stopping.EarlyStoppingConfig(patience=2))
    other.set_state(one.get_state())
    other.update({"loss": 3.0}, 4)
    assert other.is_over
    assert other.reason().endswith("did not improve 2 times; the best was 1.0 after step 2")


def test_an_unknown_metric_is_named_with_those_there_are():
    with pytest.raises(KeyError, match=r"watches 'los'.*did you mean 'loss'.*has"):
        stopper([1.0], metric="los")
    with pytest.raises(config_lib.ConfigError) as caught:
        early_stopping.EarlyStoppingConfig(patience=0, mode="least", min_delta=-1)
    assert len(caught.value.problems) == 3


class Scripted:
    """A loss whose evaluation follows a script: batch ``i`` of the evaluation has loss ``x``."""

    def __init__(self, values):
        self.values = iter(values)

    def __iter__(self):
        yield {"x": np.float32(next(self.values))}


def loss(model, x):
    one = np.float32(1.0)
    return loss_output.LossOutput(loss_sum=x + 0.0 * model.b[...], weight_sum=one)


def trainer(directory=None, *, patience=2, save_every=1, best=None):
    options = ocp.CheckpointManagerOptions(save_interval_steps=save_every, max_to_keep=1)
    if best is not None:
        options = best_checkpoint.keep_best(options, num=best)
    config = peft_trainer.TrainingConfig(
        eval_every_n_steps=1,
        early_stopping=early_stopping.EarlyStoppingConfig(patience=patience),
        pbar_description=None,
        checkpoint_root_directory=None if directory is None else str(directory),
        checkpointing_options=options,
    )
    model = toys.Linear(rngs=nnx.Rngs(0))
    return peft_trainer.PeftTrainer(model, optax.sgd(0.1), config).with_loss_fn(loss)


def batches(n):
    return [{"x": np.float32(0.0)}] * n


def test_training_ends_early_and_says_why(caplog):
    run = trainer()
    with caplog.at_level(logging.INFO):
        run.train(batches(20), Scripted([3, 1, 2, 2, 9, 9]))
    assert run.train_steps == 4
    assert "the best was 1.0 after step 2" in caplog.text


def test_a_resumed_run_remembers_how_long_it_has_waited(tmp_path):
    first = trainer(tmp_path)
    first.train(batches(3), Scripted([3, 1, 2]))
    first.close()
    second = trainer(tmp_path)
    second.train(batches(20), Scripted([2, 9]))
    assert second.train_steps == 4
    second.close()


def moving_loss(model, x):
    one = np.float32(1.0)
    return loss_output.LossOutput(loss_sum=x + model.b[...], weight_sum=one)


def test_the_best_checkpoint_is_kept_beside_the_latest_and_can_be_restored(tmp_path):
    run = trainer(tmp_path, patience=10, best=1).with_loss_fn(moving_loss)
    # Every step moves b by -0.1; the script makes the evaluation after step 2 the best.
    run.train(batches(5), Scripted([3, 1, 2, 4, 2]))
    run.checkpoint_manager.wait_until_finished()
    assert sorted(int(p.name) for p in tmp_path.iterdir() if p.name.isdigit()) == [2, 5]
    np.testing.assert_allclose(run.model.b[...], -0.5, rtol=1e-6)
    assert best_checkpoint.restore_best(run) == 2
    np.testing.assert_allclose(run.model.b[...], -0.2, rtol=1e-6)
    run.close()
    again = trainer(tmp_path, patience=10, best=1).with_loss_fn(moving_loss)
    assert again.train_steps == 5, "resuming goes on from the latest"
    again.close()


def test_without_an_evaluation_there_is_no_best(tmp_path):
    run = trainer(tmp_path, best=1)
    run.train(batches(1))
    with pytest.raises(ValueError, match="no checkpoint has metrics of an evaluation"):
        best_checkpoint.restore_best(run)
    run.close()
