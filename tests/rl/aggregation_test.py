import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tunix.rl import aggregation

# Two completions, of one and of three tokens, and an empty row.
LOSSES = jnp.array([[4.0, 100.0, 100.0], [1.0, 2.0, 6.0], [7.0, 7.0, 7.0]])
MASK = jnp.array([[True, False, False], [True, True, True], [False, False, False]])

CASES = [
    pytest.param("token-mean", 13.0, 4.0, id="token-mean: 4+1+2+6 over four tokens"),
    pytest.param("sequence-mean-token-mean", 7.0, 2.0, id="token mean: 4 + 3 over two sequences"),
    pytest.param("sequence-mean-token-sum", 13.0, 2.0, id="token sum: 4 + 9 over two sequences"),
    pytest.param("sequence-mean-token-scale", 13.0, 10.0, id="scale: the sums over 2 x 5"),
]


@pytest.mark.parametrize(("name", "loss_sum", "weight_sum"), CASES)
def test_sums_worked_out_by_hand(name, loss_sum, weight_sum):
    result = aggregation.AGGREGATIONS[name](LOSSES, MASK, max_length=5)
    np.testing.assert_allclose(result, (loss_sum, weight_sum), rtol=1e-6)


GRADIENTS = [
    pytest.param("token-mean", [[1, 0, 0], [1, 1, 1], [0, 0, 0]], id="token-mean"),
    pytest.param(
        "sequence-mean-token-mean",
        [[1, 0, 0], [1 / 3, 1 / 3, 1 / 3], [0, 0, 0]],
        id="sequence-mean-token-mean",
    ),
    pytest.param("sequence-mean-token-sum", [[1, 0, 0], [1, 1, 1], [0, 0, 0]], id="token-sum"),
]


@pytest.mark.parametrize(("name", "expected"), GRADIENTS)
def test_gradients_worked_out_by_hand(name, expected):
    grad = jax.grad(lambda x: aggregation.AGGREGATIONS[name](x, MASK, max_length=5)[0])(LOSSES)
    np.testing.assert_allclose(grad, expected, rtol=1e-6)


@pytest.mark.parametrize("name", aggregation.AGGREGATIONS)
def test_an_empty_mask_gives_zero_sums_and_zero_gradients(name):
    def loss_sum(losses):
        return aggregation.AGGREGATIONS[name](losses, jnp.zeros((2, 3), bool), max_length=5)

    (total, weight), grad = (
        loss_sum(jnp.full((2, 3), jnp.nan)),
        jax.grad(lambda x: loss_sum(x)[0])(jnp.ones((2, 3))),
    )
    assert (float(total), float(weight)) == (0.0, 0.0)
    assert np.all(np.asarray(grad) == 0.0)


@pytest.mark.parametrize("name", aggregation.AGGREGATIONS)
def test_masked_values_may_be_nan(name):
    losses = jnp.where(MASK, LOSSES, jnp.nan)
    expected = aggregation.AGGREGATIONS[name](LOSSES, MASK, max_length=5)
    np.testing.assert_allclose(
        aggregation.AGGREGATIONS[name](losses, MASK, max_length=5), expected, rtol=1e-6
    )


@pytest.mark.parametrize("name", aggregation.AGGREGATIONS)
def test_sums_of_parts_are_the_sum_of_the_whole(name):
    aggregate = aggregation.AGGREGATIONS[name]
    whole = np.array(aggregate(LOSSES, MASK, max_length=5))
    parts = [aggregate(LOSSES[i : i + 1], MASK[i : i + 1], max_length=5) for i in range(3)]
    np.testing.assert_allclose(np.sum(parts, axis=0), whole, rtol=1e-6)
