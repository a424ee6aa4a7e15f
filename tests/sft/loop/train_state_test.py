"""Splitting a model into arrays and putting it together again."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.sft import toys
from tunix.sft.loop import train_state


def test_names_are_dotted_paths():
    split, params, variables = train_state.split_model(toys.Noisy(rngs=nnx.Rngs(0)))
    assert set(params) == {"linear.w", "linear.b", "norm.scale", "norm.bias"}
    assert set(variables) == {
        "dropout.rngs.count", "dropout.rngs.key", "norm.mean", "norm.var"
    }  # fmt: skip
    assert split.frozen == {}


def test_merging_gives_the_same_function():
    model = toys.Linear(rngs=nnx.Rngs(0))
    x = jnp.ones((2, 4))
    expected = model(x)
    split, params, variables = train_state.split_model(model)
    np.testing.assert_array_equal(split.merge(params, variables, split.frozen)(x), expected)


def test_writing_back_reaches_the_callers_model():
    model = toys.Linear(rngs=nnx.Rngs(0))
    split, params, variables = train_state.split_model(model)
    state = train_state.create_train_state(
        {**params, "w": jnp.full(4, 7.0)}, variables, optax.sgd(1.0)
    )
    split.write_back(state)
    np.testing.assert_array_equal(model.w[...], np.full(4, 7.0))


def test_shared_arrays_survive_because_the_trainer_takes_copies():
    shared = jnp.arange(4.0)

    class Model(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(shared)

    _, params, _ = train_state.split_model(Model())
    assert params["w"] is not shared
    params["w"].delete()
    np.testing.assert_array_equal(shared, np.arange(4.0))


def test_a_variable_used_twice_is_trained_once():
    class Tied(nnx.Module):
        def __init__(self):
            self.a = nnx.Param(jnp.ones(2))
            self.b = self.a

    model = Tied()
    split, params, variables = train_state.split_model(model)
    assert list(params) == ["a"]
    merged = split.merge({"a": jnp.zeros(2)}, variables, split.frozen)
    assert merged.a is merged.b


def test_a_model_without_parameters_is_refused():
    with pytest.raises(ValueError, match="no parameters to train"):
        train_state.split_model(nnx.Dropout(0.5, rngs=nnx.Rngs(0)))
