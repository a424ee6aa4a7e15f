"""Steps of any number of micro-batches: the same programs, and exact zeros where there is none."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from tests.sft import peft_trainer_test, toys
from tests.sft.loop import train_step_test as step_test
from tunix.perf import compile_counter
from tunix.sft.loop import train_step


def of_one(micro, functions, state, split):
    sums = functions.zeros(state.params, state.variables, split.frozen, micro)
    return functions.accumulate(sums, state.params, split.frozen, micro)


@pytest.mark.parametrize("is_committed", [False, True])
def test_steps_of_any_number_of_micro_batches_compile_three_programs_once(is_committed):
    split, state, functions = step_test.setup(toys.Noisy(rngs=nnx.Rngs(0)))
    if is_committed:
        state = jax.device_put(state, jax.devices()[0])
    batch = toys.regression(8)
    for sizes in ([4], [4, 4], [4]):
        with compile_counter.CompileCounter() as counter:
            sums = step_test.sums_over(batch, sizes, functions, state, split)
            state, _ = step_test.applied(functions, state, sums)
        if sizes == [4, 4]:
            assert counter.count == 0, counter.names


def test_adding_to_zeros_changes_no_bit():
    batch = toys.regression(4)
    split, state, functions = step_test.setup(toys.Noisy(rngs=nnx.Rngs(0)))
    sums = step_test.sums_over(batch, [4], functions, state, split)
    zeros = functions.zeros(state.params, state.variables, split.frozen, batch)
    again = functions.accumulate(zeros, state.params, split.frozen, batch)
    toys.assert_bit_identical(sums, again)
    apart, metrics = step_test.applied(functions, state, sums)
    split, state, functions = step_test.setup(toys.Noisy(rngs=nnx.Rngs(0)))
    together, expected = functions.single(state, split.frozen, batch)
    toys.assert_bit_identical(together, apart)
    toys.assert_bit_identical(expected, metrics)


def test_weight_without_micro_batches_is_a_gradient_of_zero():
    """As from a loss that is multiplied by zero: Adam's momentum moves the parameters on."""

    def loss_fn(model, x, y, weights, factor):
        output = toys.squared_error(model, x, y, weights * factor)
        return dataclasses.replace(output, weight_sum=weights.sum())

    batch, results = toys.regression(4), []
    for is_computed in (True, False):
        split, state, functions = step_test.setup(loss_fn=loss_fn)
        real, silent = (batch | {"factor": np.float32(factor)} for factor in (1.0, 0.0))
        state, _ = step_test.applied(functions, state, of_one(real, functions, state, split))
        moved = {n: np.array(p) for n, p in state.params.items()}
        if is_computed:
            sums, weight = of_one(silent, functions, state, split), 0.0
        else:
            sums = functions.zeros(state.params, state.variables, split.frozen, real)
            weight = batch["weights"].sum()
        state, metrics = step_test.applied(functions, state, sums, weight)
        assert np.abs(state.params["w"] - moved["w"]).min() > 0.01
        results.append((state, metrics))
    toys.assert_bit_identical(*results)
    assert int(results[1][1]["status"]) == train_step.LEARNED


def test_a_step_without_any_weight_runs_nothing_and_is_empty():
    trainer = peft_trainer_test.make()
    trainer.step_on([toys.regression(4)])
    full = trainer.step_on([toys.regression(4)]).result()
    before = toys.leaves((trainer.state.params, trainer.state.opt_state))
    with compile_counter.CompileCounter() as counter:
        empty = trainer.step_on([])
        result = empty.result()
    assert counter.count == 0, counter.names
    toys.assert_bit_identical(before, (trainer.state.params, trainer.state.opt_state))
    assert result.keys() == full.keys()
    assert result["status"] == train_step.EMPTY
    assert result["loss"] == result["loss_weight"] == result["mse"] == 0.0
    assert (trainer.train_steps, int(trainer.state.step), empty.row_length) == (3, 3, 0)
    with compile_counter.CompileCounter() as counter:
        trainer.step_on([toys.regression(4)])
    assert counter.count == 0, counter.names


def test_weight_without_micro_batches_keeps_the_names_of_the_metrics():
    trainer = peft_trainer_test.make()
    full = trainer.step_on([toys.regression(4), toys.regression(4)]).result()
    result = trainer.step_on([], weight=3.0).result()
    assert result.keys() == full.keys()
    assert (result["loss"], result["mse"], result["loss_weight"]) == (0.0, 0.0, 3.0)
    assert result["status"] == train_step.LEARNED
