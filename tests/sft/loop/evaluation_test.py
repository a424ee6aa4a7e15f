"""Evaluation counts tokens, not batches."""

import numpy as np
import optax
import pytest
from flax import nnx

from tests.sft import toys
from tunix.data import iterators
from tunix.sft import peft_trainer
from tunix.sft.loop import evaluation


def trainer():
    config = peft_trainer.TrainingConfig(eval_every_n_steps=1, pbar_description=None)
    model = toys.Linear(rngs=nnx.Rngs(0))
    return peft_trainer.PeftTrainer(model, optax.sgd(0.1), config).with_loss_fn(toys.squared_error)


def test_a_short_last_batch_counts_by_its_weight():
    rows = toys.regression(7)
    whole = trainer().evaluate([rows])
    parts = trainer().evaluate(
        [toys.rows(rows, 0, 3), toys.rows(rows, 3, 6), toys.rows(rows, 6, 7)]
    )
    np.testing.assert_allclose(parts["loss"], whole["loss"], rtol=1e-6)
    np.testing.assert_allclose(parts["mse"], whole["mse"], rtol=1e-6)
    means = [
        trainer().evaluate([toys.rows(rows, a, b)])["loss"] for a, b in ((0, 3), (3, 6), (6, 7))
    ]
    assert abs(np.mean(means) - whole["loss"]) > 1e-2  # what must not come out


def test_an_iterator_with_a_position_is_put_back_after_every_evaluation():
    data = iterators.BatchIterator(
        [toys.regression(4, seed=i) for i in range(3)], 1, collate=lambda rows: rows[0][0],
        last_batch="keep",
    )  # fmt: skip
    eval_data, run = evaluation.EvalData(data), trainer()
    first = [b["x"][0, 0] for b in eval_data]
    assert len(first) == 3
    assert [b["x"][0, 0] for b in eval_data] == first
    assert run.evaluate(data) == run.evaluate(data)
    assert len(list(data)) == 3


def test_the_batch_that_is_computed_ahead_is_the_first_of_the_first_evaluation():
    drawn = []

    class Counted:
        def __iter__(self):
            for i in range(2):
                drawn.append(i)
                yield i

    data = evaluation.EvalData(Counted())
    assert (data.peek(), drawn) == ([0], [0])
    assert (list(data), drawn) == ([0, 1], [0, 1])
    assert list(data) == [0, 1]
    assert evaluation.EvalData([]).peek() == []


def test_an_iterator_that_can_be_read_once_is_refused_at_the_start():
    with pytest.raises(TypeError, match="generator that can be read only once"):
        trainer().train([toys.regression(4)], (b for b in [toys.regression(4)]))


def test_an_empty_set_is_an_error():
    with pytest.raises(ValueError, match="evaluation set has no batch"):
        trainer().evaluate([])


def test_a_set_without_any_weight_is_an_error():
    batch = toys.regression(4)
    batch["weights"][:] = 0
    with pytest.raises(ValueError, match="nothing in the evaluation set has loss weight"):
        trainer().evaluate([batch])
