"""Both precisions of every product, against numpy and against each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tunix.ops import dot as dot_lib

BF16_STEP = 2.0**-8  # relative rounding error of a bfloat16 operand


def normal(seed, *shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def rounded(x):
    """Return ``x`` rounded to bfloat16, as float64 numpy."""
    return np.asarray(jnp.asarray(x).astype(jnp.bfloat16).astype(jnp.float32), np.float64)


PRODUCTS = {
    "dot": (dot_lib.dot, (5, 7), (7, 3), lambda a, b: a @ b),
    "dot with leading axes": (dot_lib.dot, (2, 4, 7), (7, 3), lambda a, b: a @ b),
    "dot of a vector": (dot_lib.dot, (7,), (7, 3), lambda a, b: a @ b),
    "dot of one row": (dot_lib.dot, (1, 7), (7, 3), lambda a, b: a @ b),
    "dot_nt": (dot_lib.dot_nt, (5, 7), (3, 7), lambda a, b: a @ b.T),
    "dot_nt with leading axes": (dot_lib.dot_nt, (2, 4, 7), (3, 7), lambda a, b: a @ b.T),
    "dot_nt of one row": (dot_lib.dot_nt, (1, 1, 7), (3, 7), lambda a, b: a @ b.T),
    "batched nt": (
        dot_lib.batched_dot_nt,
        (2, 5, 7),
        (2, 3, 7),
        lambda a, b: a @ np.swapaxes(b, 1, 2),
    ),
    "batched nn": (dot_lib.batched_dot_nn, (2, 5, 3), (2, 3, 7), lambda a, b: a @ b),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_exact_products_match_float64_numpy(name):
    product, a_shape, b_shape, reference = PRODUCTS[name]
    a, b = normal(0, *a_shape), normal(1, *b_shape)
    expected = reference(np.asarray(a, np.float64), np.asarray(b, np.float64))
    np.testing.assert_allclose(product(a, b, precision="exact"), expected, atol=2e-6)


@pytest.mark.parametrize("name", PRODUCTS)
def test_fast_products_are_exact_products_of_rounded_operands(name):
    product, a_shape, b_shape, reference = PRODUCTS[name]
    a, b = normal(0, *a_shape), normal(1, *b_shape)
    result = jax.jit(lambda a, b: product(a, b, precision="fast"))(a, b)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, reference(rounded(a), rounded(b)), atol=2e-6)


@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("name", PRODUCTS)
def test_gradients_match_float64_numpy(name, precision):
    product, a_shape, b_shape, reference = PRODUCTS[name]
    a, b = normal(0, *a_shape), normal(1, *b_shape)
    g = normal(2, *reference(np.zeros(a_shape), np.zeros(b_shape)).shape)

    def value(a, b):
        return (product(a, b, precision=precision) * g).sum()

    read = rounded if precision == "fast" else lambda x: np.asarray(x, np.float64)
    jax_a, jax_b = jax.jit(jax.grad(value, (0, 1)))(a, b)
    # Independent of jax: the product is linear in each operand, so probe it with unit operands.
    for grad, operand, at in (
        (jax_a, a, lambda unit: reference(unit, read(b))),
        (jax_b, b, lambda unit: reference(read(a), unit)),
    ):
        expected = np.zeros(operand.shape)
        for index in np.ndindex(*operand.shape):
            unit = np.zeros(operand.shape)
            unit[index] = 1.0
            expected[index] = (at(unit) * read(g)).sum()
        np.testing.assert_allclose(grad, expected, atol=5e-6)


def test_cotangents_have_the_dtypes_of_the_operands():
    x, w = normal(0, 4, 8, dtype=jnp.float32), normal(1, 8, 4, dtype=jnp.bfloat16)
    for precision in ("exact", "fast"):
        value = lambda x, w: dot_lib.dot(x, w, precision=precision).sum()  # noqa: B023, E731
        dx, dw = jax.grad(value, (0, 1))(x, w)
        assert (dx.dtype, dw.dtype) == (jnp.float32, jnp.bfloat16)


def test_weight_gradient_of_a_float32_weight_is_not_rounded():
    x, w = jnp.ones((3, 1)), jnp.ones((1, 1))
    g = jnp.array([[1.0], [1 / 256], [1 / 512]])  # each is a bfloat16, their sum is not
    dw = jax.grad(lambda w: (dot_lib.dot(x, w, precision="fast") * g).sum())(w)
    assert dw[0, 0] == 1.0 + 1 / 256 + 1 / 512


@pytest.mark.parametrize("name", ["dot", "dot_nt"])
def test_a_frozen_weight_costs_no_product(name):
    product = PRODUCTS[name][0]
    x, w = normal(0, 64, 128), normal(1, 128, 128)

    def flops(argnums):
        value = lambda x, w: (product(x, w, precision="fast") ** 2).sum()  # noqa: E731
        compiled = jax.jit(jax.grad(value, argnums)).lower(x, w).compile()
        return compiled.cost_analysis()["flops"]

    one_product = 2 * 64 * 128 * 128
    assert flops((0, 1)) > 2.9 * one_product
    assert flops(0) < 2.1 * one_product


def test_products_work_under_vmap_and_scan():
    x, w = normal(0, 3, 4, 8), normal(1, 3, 8, 5)
    expected = np.einsum("lmk,lkn->lmn", rounded(x), rounded(w))

    def value(x, w):
        return dot_lib.dot(x, w, precision="fast")

    np.testing.assert_allclose(jax.vmap(value)(x, w), expected, atol=2e-6)
    grads = jax.vmap(jax.grad(lambda x, w: value(x, w).sum(), (0, 1)))(x, w)
    scanned = jax.lax.scan(
        lambda carry, xw: (carry, jax.grad(lambda x, w: value(x, w).sum(), (0, 1))(*xw)),
        0,
        (x, w),
    )[1]
    for a, b in zip(grads, scanned, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)
    np.testing.assert_allclose(
        grads[1], np.broadcast_to(rounded(x).sum(1)[:, :, None], w.shape), atol=5e-6
    )


def test_auto_follows_the_device():
    expected = "fast" if dot_lib.has_bf16_units() else "exact"
    assert dot_lib.resolve_precision("auto") == expected
    assert dot_lib.resolve_precision("exact") == "exact"
    assert dot_lib.resolve_precision("fast") == "fast"


@pytest.mark.parametrize(
    ("backend", "cpuinfo", "expected"),
    [
        pytest.param("gpu", None, True, id="a GPU"),
        pytest.param("cpu", "flags : fpu avx2 amx_bf16\n", True, id="a CPU with AMX"),
        pytest.param("cpu", "flags : avx512_bf16 fpu\n", True, id="a CPU with AVX512-BF16"),
        pytest.param("cpu", "flags : fpu avx2 avx512f\n", False, id="a CPU without either"),
        pytest.param("cpu", None, False, id="a CPU that tells nothing"),
    ],
)
def test_bfloat16_is_faster_where_the_device_has_units_for_it(
    backend, cpuinfo, expected, tmp_path, monkeypatch
):
    file = tmp_path / "cpuinfo"
    if cpuinfo is not None:
        file.write_text(cpuinfo)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(dot_lib.pathlib, "Path", lambda _: file)
    assert dot_lib.has_bf16_units.__wrapped__() is expected


def test_an_unknown_precision_is_named():
    with pytest.raises(ValueError, match="'auto', 'exact' or 'fast', got 'bf16'"):
        dot_lib.resolve_precision("bf16")
