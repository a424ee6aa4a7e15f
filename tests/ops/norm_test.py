"""Normalisation against hand-worked numbers."""

import jax
import jax.numpy as jnp
import numpy as np

from tunix.ops import norm


def test_a_row_worked_by_hand():
    # mean of squares (9 + 16) / 2 = 12.5; with eps 12.5 the divisor is sqrt(25) = 5.
    y = norm.rms_norm(jnp.array([3.0, 4.0]), jnp.array([1.0, 2.0]), eps=12.5)
    np.testing.assert_allclose(y, [0.6, 1.6], rtol=1e-6)


def test_every_row_is_normalised_by_itself():
    # Roots of the mean squares: sqrt(12.5), sqrt(50), sqrt(0.5). Deviations: 0.5, 5, 0.5.
    x = jnp.array([[[3.0, 4.0]], [[10.0, 0.0]], [[1.0, 0.0]]])
    y = norm.rms_norm(x, jnp.ones(2), eps=0.0)
    expected = np.array([[0.6, 0.8], [1.0, 0.0], [1.0, 0.0]]) * np.sqrt(2)
    np.testing.assert_allclose(y[:, 0], expected, rtol=1e-6)
    z = norm.layer_norm(x.swapaxes(0, 1), jnp.ones(2), jnp.zeros(2), eps=0.0)
    np.testing.assert_allclose(z[0], [[-1.0, 1.0], [1.0, -1.0], [1.0, -1.0]], rtol=1e-6)


def test_an_offset_adds_to_the_scale():
    x, scale = jnp.array([[1.0, -2.0, 3.0]]), jnp.array([0.5, 0.0, -0.25])
    np.testing.assert_allclose(
        norm.rms_norm(x, scale, eps=1e-6, scale_offset=1.0),
        norm.rms_norm(x, scale + 1.0, eps=1e-6),
        rtol=1e-6,
    )


def test_a_zero_row_stays_zero_with_a_finite_gradient():
    def total(x):
        return norm.rms_norm(x, jnp.ones(4), eps=1e-6).sum()

    value, grad = jax.value_and_grad(total)(jnp.zeros((1, 4)))
    assert value == 0.0
    np.testing.assert_allclose(grad, 1000.0, rtol=1e-6)  # 1 / sqrt(eps)


def test_bfloat16_input_is_normalised_in_float32():
    x = jnp.asarray([[1.0, 2.0, 3.0, 4.0]], jnp.bfloat16)
    y = norm.rms_norm(x, jnp.ones(4), eps=0.0)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y[0], np.arange(1, 5) / np.sqrt(7.5), rtol=1e-6)


def test_layer_norm_by_hand():
    x = jnp.array([[1.0, 3.0], [5.0, 5.0]])
    out = norm.layer_norm(x, jnp.array([2.0, 1.0]), jnp.array([0.5, -1.0]), eps=3.0)
    # Row one: mean 2, variance 1, so -1 and 1 over sqrt(1 + 3); row two: no variance at all.
    np.testing.assert_allclose(out, [[-0.5, -0.5], [0.5, -1.0]], rtol=1e-6)
