"""Codes of frozen matrices: their values, their errors, their sizes, and the product with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tunix.ops import dot as dot_lib
from tunix.ops import quantize

# The constants that bitsandbytes publishes for its nf4.
PUBLISHED_NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def reference(w, kind, block):
    """Quantise and dequantise in float64, block by block, as the definition says."""
    out = np.empty(w.shape)
    for column in range(w.shape[1]):
        for start in range(0, w.shape[0], block):
            part = np.asarray(w[start : start + block, column], np.float64)
            largest = np.abs(part).max()
            if kind == "nf4":
                table = np.asarray(quantize.nf4_values())
                nearest = np.abs(part[:, None] / largest - table).argmin(axis=1)
                values = table[nearest] * largest
            else:
                steps = {"int8": 127, "int4": 7}[kind]
                values = np.round(part / largest * steps) * largest / steps
            out[start : start + block, column] = values
    return out


def test_nf4_values_are_the_published_ones():
    np.testing.assert_allclose(quantize.nf4_values(), PUBLISHED_NF4, atol=3e-7)


@pytest.mark.parametrize(("kind", "block"), [("int8", 96), ("int8", 24), ("int4", 32)])
def test_integers_are_rounded_within_their_block(kind, block):
    w = normal(0, 96, 5)
    q = quantize.quantize(w, kind, block)
    np.testing.assert_allclose(quantize.dequantize(q), reference(w, kind, block), atol=1e-6)


def test_nf4_is_the_nearest_value_times_a_scale_that_is_itself_in_8_bits():
    w = normal(1, 128, 300)
    q = quantize.quantize(w, "nf4")
    exact = reference(w, "nf4", 64)
    scales = np.abs(np.asarray(w).reshape(2, 64, 300)).max(axis=1)
    # Scales are off by half a step: of the largest distance from their mean in 256 neighbours.
    step = np.abs(scales - scales.mean()).max() / 127
    assert np.abs(quantize.dequantize(q) - exact).max() <= step / 2 + 1e-6
    assert q.scale_blocks.shape == (2, 2)


def test_a_weight_that_is_a_value_times_a_scale_comes_back_exactly():
    values = np.asarray(quantize.nf4_values(), np.float32)
    w = jnp.asarray(np.tile(values, 8)[:, None] * 0.5 * np.ones((1, 3), np.float32))
    np.testing.assert_allclose(quantize.dequantize(quantize.quantize(w, "nf4")), w, atol=1e-7)


@pytest.mark.parametrize("kind", quantize.KINDS)
def test_zeros_and_lone_outliers_stay_finite(kind):
    w = jnp.zeros((64, 3)).at[5, 1].set(-4.0)
    back = quantize.dequantize(quantize.quantize(w, kind))
    assert np.isfinite(back).all()
    np.testing.assert_array_equal(np.delete(back, 5, axis=0), 0.0)
    assert abs(back[5, 1] + 4.0) < 0.02


@pytest.mark.parametrize("kind", quantize.KINDS)
def test_leading_axes_are_quantised_one_by_one(kind):
    w = normal(2, 3, 64, 6)
    whole = quantize.quantize(w, kind)
    assert whole.shape == w.shape
    for i in range(3):
        one = quantize.dequantize(quantize.quantize(w[i], kind))
        np.testing.assert_array_equal(quantize.dequantize(whole)[i], one)


@pytest.mark.parametrize(("kind", "bits"), [("nf4", 4.13), ("int4", 4.51), ("int8", 8.04)])
def test_a_weight_takes_so_many_bits(kind, bits):
    w = normal(3, 1024, 512)
    assert quantize.quantize(w, kind).num_bytes * 8 / w.size == pytest.approx(bits, abs=0.02)


@pytest.mark.parametrize(
    ("shape", "kind", "block", "message"),
    [
        ((100, 4), "nf4", None, "100 rows are not a multiple of the block size 64"),
        ((48, 4), "int8", 32, "48 rows are not a multiple of the block size 32"),
        ((9, 4), "int4", 3, "9 rows are odd"),
    ],
)
def test_rows_that_do_not_divide_are_refused(shape, kind, block, message):
    with pytest.raises(ValueError, match=message):
        quantize.quantize(jnp.ones(shape), kind, block)


@pytest.mark.parametrize("kind", quantize.KINDS)
@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_the_product_and_its_gradient_are_those_of_the_dequantised_matrix(kind, precision):
    q = quantize.quantize(normal(4, 64, 10), kind)
    x, g = normal(5, 2, 3, 64), normal(6, 2, 3, 10)
    w = quantize.dequantize(q)
    ours, ours_vjp = jax.vjp(lambda x: dot_lib.dot_quantized(x, q, precision=precision), x)
    plain, plain_vjp = jax.vjp(lambda x: dot_lib.dot(x, w, precision=precision), x)
    np.testing.assert_array_equal(ours, plain)
    np.testing.assert_allclose(ours_vjp(g)[0], plain_vjp(g)[0], atol=1e-5)


@pytest.mark.parametrize("kind", quantize.KINDS)
def test_nothing_dense_is_kept_for_the_backward_pass(kind):
    q = quantize.quantize(normal(7, 128, 64), kind)
    x = normal(8, 4, 128)
    _, vjp = jax.vjp(lambda x: dot_lib.dot_quantized(x, q, precision="exact"), x)
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves(vjp))
    assert kept == q.num_bytes
