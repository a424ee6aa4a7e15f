"""The step: exact sums over micro-batches, and updates that only happen when they should."""

import dataclasses
import functools
import itertools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import strategies as st

from tests.sft import toys
from tunix.perf import compile_counter
from tunix.sft import loss_output
from tunix.sft.loop import train_state, train_step

SPLITS = [
    pytest.param([8], id="1x8"),
    pytest.param([4, 4], id="2x4"),
    pytest.param([1] * 8, id="8x1"),
    pytest.param([5, 1, 2], id="ragged"),
]


def setup(model=None, optimizer=None, loss_fn=toys.squared_error, **kwargs):
    model = model or toys.Linear(rngs=nnx.Rngs(0))
    optimizer = optimizer or optax.adamw(0.1)
    split, params, variables = train_state.split_model(model)
    state = train_state.create_train_state(params, variables, optimizer)
    functions = train_step.make_step_functions(split, loss_fn, optimizer, **kwargs)
    return split, state, functions


def sums_over(batch, sizes, functions, state, split):
    """Accumulate the rows of ``batch`` in micro-batches of the given sizes."""
    edges = itertools.pairwise([0, *itertools.accumulate(sizes)])
    parts = [toys.rows(batch, *edge) for edge in edges]
    sums = functions.zeros(state.params, state.variables, split.frozen, parts[0])
    for micro in parts:
        sums = functions.accumulate(sums, state.params, split.frozen, micro)
    return sums


def applied(functions, state, sums, weight=0.0):
    return functions.apply(state, sums, np.float32(weight))


shared = functools.cache(setup)  # compiled once for all examples of a property test


def mean_gradient(sums):
    return {n: np.asarray(g) / float(sums.output.weight_sum) for n, g in sums.grads.items()}


def relative_difference(one, other):
    """Norm of the difference of two gradients, relative to the norm of one."""
    gap = np.sqrt(sum(np.sum((one[n] - other[n]) ** 2) for n in one))
    return gap / np.sqrt(sum(np.sum(g**2) for g in one.values()))


@pytest.mark.parametrize("sizes", SPLITS)
def test_loss_and_gradient_do_not_depend_on_the_split(sizes):
    batch = toys.regression(8)
    split, state, functions = setup()
    whole = sums_over(batch, [8], functions, state, split)
    parts = sums_over(batch, sizes, functions, state, split)
    assert relative_difference(mean_gradient(whole), mean_gradient(parts)) < 1e-6
    np.testing.assert_allclose(
        parts.output.finalize()["loss"], whole.output.finalize()["loss"], rtol=1e-6
    )


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(
    cuts=st.sets(st.integers(1, 5)),
    weights=st.lists(st.sampled_from([0.0, 0.25, 1.0, 3.0]), min_size=6, max_size=6),
)
def test_no_split_and_no_weights_change_the_gradient(cuts, weights):
    batch = toys.regression(6) | {"weights": np.array(weights, np.float32)}
    edges = [0, *sorted(cuts), 6]
    sizes = [b - a for a, b in itertools.pairwise(edges)]
    split, state, functions = shared()
    whole = sums_over(batch, [6], functions, state, split)
    parts = sums_over(batch, sizes, functions, state, split)
    np.testing.assert_allclose(parts.output.weight_sum, sum(weights), rtol=1e-6)
    for name, grad in whole.grads.items():
        np.testing.assert_allclose(parts.grads[name], grad, rtol=1e-5, atol=1e-6)


def test_the_gradient_is_that_of_the_weighted_mean_worked_out_by_hand():
    batch = toys.regression(8)
    split, state, functions = setup()
    got = mean_gradient(sums_over(batch, [3, 5], functions, state, split))
    error = batch["x"] @ np.asarray(state.params["w"]) - batch["y"]
    scale = 2 * batch["weights"] * error / batch["weights"].sum()
    np.testing.assert_allclose(got["w"], scale @ batch["x"], rtol=1e-5)
    np.testing.assert_allclose(got["b"], scale.sum(), rtol=1e-5)


def test_a_mean_of_micro_batch_means_is_another_gradient():
    """The usual mistake, so that the test above is known to notice it."""

    def mean_squared_error(model, x, y, weights):
        output = toys.squared_error(model, x, y, weights)
        return output.loss_sum / output.weight_sum  # a scalar: one unit of weight per call

    batch = toys.regression(8)
    split, state, functions = setup(loss_fn=mean_squared_error)
    whole = sums_over(batch, [8], functions, state, split)
    parts = sums_over(batch, [5, 1, 2], functions, state, split)
    assert relative_difference(mean_gradient(whole), mean_gradient(parts)) > 1e-2


@pytest.mark.parametrize("sizes", SPLITS)
def test_the_state_after_a_step_does_not_depend_on_the_split(sizes):
    batch = toys.regression(8)
    split, state, functions = setup()
    apart, metrics = applied(functions, state, sums_over(batch, sizes, functions, state, split))
    _, state, _ = setup()
    together, expected = functions.single(state, split.frozen, batch)
    for name in together.params:
        np.testing.assert_allclose(apart.params[name], together.params[name], rtol=1e-5)
    for name in ("loss", "mse", "grad_norm", "loss_weight"):
        np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-5)


def test_an_sgd_step_is_the_learning_rate_times_the_gradient():
    batch = toys.regression(8)
    split, state, functions = setup(optimizer=optax.sgd(0.5))
    gradient = mean_gradient(sums_over(batch, [8], functions, state, split))
    before = {n: np.array(p) for n, p in state.params.items()}
    after, metrics = functions.single(state, split.frozen, batch)
    for name, grad in gradient.items():
        np.testing.assert_allclose(after.params[name], before[name] - 0.5 * grad, rtol=1e-5)
    norm = np.sqrt(sum(np.sum(g**2) for g in gradient.values()))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
    assert metrics["loss_weight"] == pytest.approx(batch["weights"].sum())
    assert int(metrics["status"]) == train_step.LEARNED


@pytest.mark.parametrize("poison", ["loss", "gradient"])
@pytest.mark.parametrize("num_micro", [1, 2])
def test_a_non_finite_step_leaves_the_state_bit_identical(poison, num_micro):
    def loss_fn(model, x, y, weights):
        output = toys.squared_error(model, x, y, weights)
        bad = jnp.where(x[0, 0] > 50.0, jnp.nan, 0.0)
        if poison == "gradient":
            # sqrt has value 0 and an infinite slope at 0.
            reachable = jnp.where(x[0, 0] > 50.0, 0.0, 1.0) * (1.0 + model.linear.b[...] ** 2)
            bad = jnp.sqrt(reachable) * 1e-3
        return dataclasses.replace(output, loss_sum=output.loss_sum + bad)

    model = toys.Noisy(rngs=nnx.Rngs(0))
    split, state, functions = setup(model, loss_fn=loss_fn)
    good, bad = toys.regression(4), toys.regression(4, seed=1)
    bad["x"][0, 0] = 99.0

    def step(state, *micro):
        if num_micro == 1:
            return functions.single(state, split.frozen, micro[0])
        sums = functions.zeros(state.params, state.variables, split.frozen, micro[0])
        for one in micro:
            sums = functions.accumulate(sums, state.params, split.frozen, one)
        return applied(functions, state, sums)

    state, metrics = step(state, good, good)
    assert int(metrics["status"]) == train_step.LEARNED
    before = [toys.leaves(t) for t in (state.params, state.variables, state.opt_state)]
    state, metrics = step(state, bad, good)
    assert int(metrics["status"]) == train_step.NONFINITE
    after = [toys.leaves(t) for t in (state.params, state.variables, state.opt_state)]
    toys.assert_bit_identical(before, after)
    assert (int(state.step), int(state.skipped)) == (2, 1)

    state, metrics = step(state, good, good)
    assert int(metrics["status"]) == train_step.LEARNED
    assert all(np.isfinite(leaf).all() for leaf in toys.leaves(state.params))
    assert int(metrics["skipped_steps"]) == 1


def test_a_step_without_any_weight_changes_nothing_and_is_not_called_non_finite():
    batch = toys.regression(4)
    batch["weights"][:] = 0.0
    split, state, functions = setup()
    before = toys.leaves((state.params, state.opt_state))
    state, metrics = functions.single(state, split.frozen, batch)
    toys.assert_bit_identical(before, (state.params, state.opt_state))
    assert int(metrics["status"]) == train_step.EMPTY
    assert float(metrics["loss"]) == 0.0
    assert (int(state.step), int(state.skipped)) == (1, 0)


def test_a_step_of_little_weight_learns_as_much_as_one_of_much():
    batch = toys.regression(4)
    batch["weights"] /= batch["weights"].sum()
    split, state, functions = setup(optimizer=optax.sgd(0.5))
    whole, _ = functions.single(state, split.frozen, batch)
    batch["weights"] /= 4.0
    _, state, _ = setup(optimizer=optax.sgd(0.5))
    quarter, metrics = functions.single(state, split.frozen, batch)
    assert int(metrics["status"]) == train_step.LEARNED
    np.testing.assert_allclose(quarter.params["w"], whole.params["w"], rtol=1e-6)


def test_what_logs_hold_as_status_is_0_learned_1_not_finite_2_empty():
    assert (train_step.LEARNED, train_step.NONFINITE, train_step.EMPTY) == (0, 1, 2)


def test_random_streams_and_batch_statistics_move_on_with_every_step():
    split, state, functions = setup(toys.Noisy(rngs=nnx.Rngs(0)))
    batch = toys.regression(8)
    before = {
        n: np.array(jax.random.key_data(v) if "key" in n else v) for n, v in state.variables.items()
    }
    state, _ = functions.single(state, split.frozen, batch)
    assert int(state.variables["dropout.rngs.count"]) == before["dropout.rngs.count"] + 1
    assert not np.array_equal(state.variables["norm.mean"], before["norm.mean"])
    np.testing.assert_array_equal(
        jax.random.key_data(state.variables["dropout.rngs.key"]), before["dropout.rngs.key"]
    )


def test_each_micro_batch_has_its_own_key_and_moves_the_statistics_on():
    """Against a plain loop over the module, which keeps its own state."""
    batch, sizes = toys.regression(9), [2, 4, 3]
    split, state, functions = setup(toys.Noisy(rngs=nnx.Rngs(0)))
    sums = sums_over(batch, sizes, functions, state, split)

    model = toys.Noisy(rngs=nnx.Rngs(0))
    gradient = nnx.grad(lambda model, micro: toys.squared_error(model, **micro).loss_sum)
    parts = [gradient(model, toys.rows(batch, *edges)) for edges in [(0, 2), (2, 6), (6, 9)]]
    for name in ("w", "b"):
        expected = sum(part["linear"][name][...] for part in parts)
        np.testing.assert_allclose(sums.grads[f"linear.{name}"], expected, rtol=1e-5)
    assert int(sums.variables["dropout.rngs.count"]) == int(model.dropout.rngs.count[...])
    for name in ("mean", "var"):
        expected = getattr(model.norm, name)[...]
        np.testing.assert_allclose(sums.variables[f"norm.{name}"], expected, rtol=1e-6)
    new_state, _ = applied(functions, state, sums)
    assert int(new_state.variables["dropout.rngs.count"]) == int(model.dropout.rngs.count[...])


def test_evaluation_switches_dropout_off_and_changes_nothing():
    split, state, functions = setup(toys.Noisy(rngs=nnx.Rngs(0)))
    before = toys.leaves(state)
    batch = toys.regression(8)
    first = functions.evaluate(state.params, state.variables, split.frozen, batch)
    second = functions.evaluate(state.params, state.variables, split.frozen, batch)
    assert float(first.loss_sum) == float(second.loss_sum)
    toys.assert_bit_identical(before, state)
    linear = state.params
    expected = (batch["x"] / np.sqrt(1 + 1e-5)) @ linear["linear.w"] + linear["linear.b"]
    error = (expected - batch["y"]) ** 2 * batch["weights"]
    np.testing.assert_allclose(first.loss_sum, error.sum(), rtol=1e-5)


def test_only_what_is_trained_gets_a_gradient():
    class Adapted(nnx.Module):
        def __init__(self):
            self.base = nnx.Param(jnp.ones(4))
            self.adapter = nnx.LoRAParam(jnp.zeros(4))

        def __call__(self, x):
            return x @ (self.base[...] + self.adapter[...])

    model = Adapted()
    split, state, functions = setup(model)
    assert set(state.params) == {"adapter"}
    assert set(split.frozen) == {"base"}
    state, _ = functions.single(state, split.frozen, toys.regression(4))
    split.write_back(state)
    np.testing.assert_array_equal(model.base[...], np.ones(4))
    assert np.abs(model.adapter[...]).min() > 0
    assert not any("base" in str(p) for p, _ in jax.tree.leaves_with_path(state.opt_state))


def test_bfloat16_parameters_accumulate_in_float32():
    class Small(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(jnp.ones(4, jnp.bfloat16))

        def __call__(self, x):
            return x @ self.w[...].astype(jnp.float32)

    split, state, functions = setup(Small(), optimizer=optax.adam(1e-1))
    sums = sums_over(toys.regression(4), [4], functions, state, split)
    assert sums.grads["w"].dtype == jnp.float32
    state, _ = applied(functions, state, sums)
    assert state.params["w"].dtype == jnp.bfloat16


def test_steps_of_one_shape_compile_once():
    split, state, functions = setup()
    batch = toys.regression(8)
    state, _ = functions.single(state, split.frozen, batch)
    with compile_counter.CompileCounter() as counter:
        for seed in range(3):
            state, _ = functions.single(state, split.frozen, toys.regression(8, seed=seed))
    assert counter.count == 0, counter.names


def test_the_old_state_is_donated_and_the_frozen_arrays_are_not():
    split, state, functions = setup()
    new_state, _ = functions.single(state, split.frozen, toys.regression(8))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.params, state.opt_state)))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(new_state))


def test_the_sums_so_far_are_donated_and_the_parameters_are_not():
    split, state, functions = setup()
    batch = toys.regression(8)
    sums = sums_over(batch, [4, 4], functions, state, split)
    functions.accumulate(sums, state.params, split.frozen, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(sums.grads))
    kept = (state.params, state.variables)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(kept))


def test_the_state_of_a_mesh_comes_back_where_it_was():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    _, state, _ = setup()
    shardings = jax.tree.map(lambda _: place, state)
    split, state, functions = setup(state_shardings=shardings)
    batch = toys.regression(4)
    sums = sums_over(batch, [4], functions, state, split)
    for new_state, _ in (
        applied(functions, state, sums),
        functions.single(setup()[1], split.frozen, batch),
    ):
        assert jax.tree.map(lambda x: x.sharding, new_state) == shardings


def test_a_learning_rate_schedule_shows_among_the_metrics():
    optimizer = optax.inject_hyperparams(optax.sgd)(
        learning_rate=optax.linear_schedule(1.0, 0.0, 10)
    )
    split, state, functions = setup(optimizer=optimizer)
    rates = []
    for _ in range(3):
        state, metrics = functions.single(state, split.frozen, toys.regression(4))
        rates.append(float(metrics["learning_rate"]))
    np.testing.assert_allclose(rates, [1.0, 0.9, 0.8], rtol=1e-6)


def test_a_metric_may_not_take_the_trainers_names():
    def loss_fn(model, x, y, weights):
        return model(x).sum(), {"grad_norm": 1.0}

    split, state, functions = setup(loss_fn=loss_fn, has_aux=True)
    with pytest.raises(ValueError, match=r"'grad_norm'.*rename"):
        functions.single(state, split.frozen, toys.regression(4))


def test_without_jit_a_step_gives_the_same_numbers():
    batch = toys.regression(8)
    split, state, functions = setup()
    jitted, metrics = functions.single(state, split.frozen, batch)
    split, state, functions = setup(jit=False)
    eager, expected = functions.single(state, split.frozen, batch)
    np.testing.assert_allclose(eager.params["w"], jitted.params["w"], rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-6)


def test_a_loss_output_is_differentiated_through_its_sum_only():
    def loss_fn(model, x, y, weights):
        total = model(x).sum()
        return loss_output.LossOutput(total, jnp.float32(1.0), {"big": (total * 100, total)})

    split, state, functions = setup(loss_fn=loss_fn)
    batch = toys.regression(4)
    sums = sums_over(batch, [4], functions, state, split)
    np.testing.assert_allclose(sums.grads["w"], batch["x"].sum(0), rtol=1e-6)
