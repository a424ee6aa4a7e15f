"""Products by group against a plain loop over groups, and how much work they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tunix.ops import ragged

SIZES = {
    "mixed, with empty groups": [3, 0, 7, 1, 0],
    "all rows in the last group": [0, 0, 0, 0, 11],
    "all rows in the first group": [11, 0, 0, 0, 0],
    "several tiles a group": [17, 0, 25, 1, 9],
    "one row each": [1, 1, 1, 1, 1],
}


def operands(sizes, k=6, n=5, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(sum(sizes), k)), jnp.float32)
    w = jnp.asarray(rng.normal(size=(len(sizes), k, n)), dtype)
    g = jnp.asarray(rng.normal(size=(sum(sizes), n)), jnp.float32)
    return x, w, g, jnp.asarray(sizes, jnp.int32)


def by_loop(x, w, sizes):
    parts = np.split(np.asarray(x, np.float64), np.cumsum(sizes)[:-1])
    return np.concatenate(
        [part @ np.asarray(one, np.float64) for part, one in zip(parts, w, strict=True)]
    )


def gradients_by_loop(x, w, g, sizes):
    """Return the cotangents of ``x`` and ``w`` by the chain rule, group by group."""
    starts = np.cumsum(sizes)[:-1]
    xs, gs = (
        np.split(np.asarray(x, np.float64), starts),
        np.split(np.asarray(g, np.float64), starts),
    )
    dx = [g @ np.asarray(one, np.float64).T for g, one in zip(gs, w, strict=True)]
    return np.concatenate(dx), np.stack([x.T @ g for x, g in zip(xs, gs, strict=True)])


def rounded(array):
    """Return what a product in fast precision makes of an operand."""
    return np.asarray(array.astype(jnp.bfloat16), np.float32)


def products(x, w, g, sizes, precision):
    """Return the products and the cotangents of ``x`` and ``w``."""
    run = jax.jit(lambda x, w: ragged.ragged_dot(x, w, sizes, precision=precision))
    y, pullback = jax.vjp(run, x, w)
    return y, *pullback(g)


@pytest.mark.parametrize("case", SIZES)
def test_products_and_gradients_are_those_of_a_loop_over_groups(case):
    x, w, g, sizes = operands(SIZES[case])
    y, dx, dw = products(x, w, g, sizes, "exact")
    expected = by_loop(x, w, SIZES[case]), *gradients_by_loop(x, w, g, SIZES[case])
    for found, wanted in zip((y, dx, dw), expected, strict=True):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_fast_products_round_operands_and_nothing_else(dtype):
    sizes = SIZES["several tiles a group"]
    x, w, g, group_sizes = operands(sizes, dtype=dtype)
    y, dx, dw = products(x, w, g, group_sizes, "fast")
    x, w16, g = rounded(x), rounded(w), rounded(g)
    want_dx, want_dw = gradients_by_loop(x, w16, g, sizes)
    np.testing.assert_allclose(y, by_loop(x, w16, sizes), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dx, want_dx, rtol=1e-5, atol=1e-5)
    assert dw.dtype == dtype
    tolerance = 1e-5 if dtype == jnp.float32 else 2**-8  # of the rounded result
    np.testing.assert_allclose(dw.astype(jnp.float32), want_dw, rtol=tolerance, atol=1e-5)


@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_the_operation_of_accelerators_computes_the_same(precision):
    """It runs on CPU, too, only slowly."""
    sizes = SIZES["mixed, with empty groups"]
    x, w, g, group_sizes = operands(sizes)
    y, dx, dw = products(x, w, g, group_sizes, precision)
    close = dict(rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ragged._native(x, w, group_sizes, precision), y, **close)
    transposed = jnp.swapaxes(w, 1, 2)
    np.testing.assert_allclose(ragged._native(g, transposed, group_sizes, precision), dx, **close)
    np.testing.assert_allclose(ragged._native_outer(x, g, group_sizes, precision), dw, **close)


def multiplied_rows(sizes):
    """Return how many rows the tiles of these groups hold, other groups' rows included."""
    num_rows, tile = sum(sizes), ragged.tile_rows(sum(sizes), len(sizes))
    tiles = ragged._tiles(jnp.asarray(sizes, jnp.int32), num_rows, tile)
    assert int(tiles.number) <= tiles.group.shape[0]
    return int(tiles.number) * tile


@pytest.mark.parametrize("num_groups", [1, 16, 256])
def test_the_work_grows_with_the_rows_and_not_with_the_groups(num_groups):
    """Random, equal and degenerate groups: at most half of the rows more, and a tile a used group.

    A product of all rows with all matrices would be ``num_groups`` times the rows.
    """
    rng = np.random.default_rng(0)
    for num_rows in (16, 2048):
        uneven = rng.multinomial(num_rows, rng.dirichlet(np.ones(num_groups)))
        equal = np.full(num_groups, num_rows // num_groups)
        equal[0] += num_rows - equal.sum()
        for sizes in (uneven, equal, [num_rows] + [0] * (num_groups - 1)):
            used = np.count_nonzero(sizes)
            assert multiplied_rows(list(map(int, sizes))) <= 1.5 * num_rows + 8 * used


def test_one_iteration_multiplies_one_tile_and_reads_one_matrix():
    """XLA counts the body of a loop once: that of the native operation grows with the groups."""

    def flops(num_groups, product):
        x, w, _, sizes = operands([4] * num_groups, k=32, n=32)
        compiled = jax.jit(product).lower(x, w, sizes).compile()
        return compiled.cost_analysis()["flops"]

    def tiled(x, w, sizes):
        return ragged.ragged_dot(x, w, sizes, precision="exact")

    tile = 2 * 8 * 32 * 32
    for num_groups in (4, 32):
        assert tile <= flops(num_groups, tiled) < 2 * tile


@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_no_copy_of_all_matrices_is_made(precision):
    x, w, _, sizes = operands([2] * 32, k=64, n=64, dtype=jnp.bfloat16)
    run = jax.jit(lambda x, w: ragged.ragged_dot(x, w, sizes, precision=precision))
    temporary = run.lower(x, w).compile().memory_analysis().temp_size_in_bytes
    assert temporary < w.nbytes / 2
