"""Sums, weights and what loss functions may return."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tunix.sft import loss_output

LossOutput = loss_output.LossOutput


def output(loss_sum, weight_sum, **metrics):
    pairs = {n: (jnp.float32(s), jnp.float32(w)) for n, (s, w) in metrics.items()}
    return LossOutput(jnp.float32(loss_sum), jnp.float32(weight_sum), pairs)


def test_two_outputs_divide_their_sums_not_their_means():
    total = output(10.0, 5.0, hits=(1.0, 2.0)).add(output(2.0, 1.0, hits=(3.0, 6.0)))
    means = total.finalize()
    np.testing.assert_allclose(means["loss"], 2.0)  # 12 / 6, and not (2 + 2) / 2 by luck
    np.testing.assert_allclose(means["hits"], 0.5)  # 4 / 8; the mean of means is 0.5 too
    unequal = output(10.0, 5.0).add(output(8.0, 1.0)).finalize()
    np.testing.assert_allclose(unequal["loss"], 3.0)  # mean of means: 5


def test_the_largest_maximum_counts():
    one = LossOutput(jnp.float32(1), jnp.float32(1), maxima={"worst": jnp.float32(0.5)})
    other = LossOutput(jnp.float32(1), jnp.float32(1), maxima={"worst": jnp.float32(0.2)})
    assert one.add(other).finalize()["worst"] == 0.5


def test_without_weight_the_mean_is_zero_and_so_is_its_gradient():
    def mean(x):
        return LossOutput(x * 0.0, jnp.float32(0.0)).finalize()["loss"]

    value, grad = jax.value_and_grad(mean)(jnp.float32(3.0))
    assert value == 0.0
    assert grad == 0.0


def test_a_scalar_is_one_unit_of_weight():
    assert loss_output.as_loss_output(2.5, has_aux=False).finalize() == {"loss": 2.5}


def test_aux_holds_scalars_or_pairs():
    result = (jnp.float32(2.0), {"accuracy": 0.5, "reward": (6.0, 4.0)})
    means = loss_output.as_loss_output(result, has_aux=True).finalize()
    assert means == {"loss": 2.0, "accuracy": 0.5, "reward": 1.5}


def test_a_loss_output_passes_through():
    given = output(1.0, 2.0)
    assert loss_output.as_loss_output(given, has_aux=False) is given


@pytest.mark.parametrize(
    ("result", "has_aux", "message"),
    [
        pytest.param(jnp.ones(3), False, "must be a scalar, found shape", id="a vector"),
        pytest.param((1.0, {}), False, "has_aux=True", id="a tuple without has_aux"),
        pytest.param(1.0, True, "must return", id="no tuple with has_aux"),
        pytest.param((1.0, [1]), True, "aux must map", id="aux that is not a mapping"),
        pytest.param((1.0, {"a": jnp.ones(2)}), True, "metric 'a'", id="a metric with a shape"),
    ],
)
def test_what_else_is_refused(result, has_aux, message):
    with pytest.raises(TypeError, match=message):
        loss_output.as_loss_output(result, has_aux=has_aux)


def test_outputs_with_different_metrics_cannot_be_added():
    with pytest.raises(ValueError, match="same metrics"):
        output(1.0, 1.0, a=(1.0, 1.0)).add(output(1.0, 1.0))
