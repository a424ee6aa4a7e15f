"""Every matrix product of the library, in one of two precisions.

``exact`` multiplies float32 operands at the highest precision the device has. ``fast`` rounds the
operands to bfloat16 and accumulates and returns float32, forward and backward: the form that the
matrix units of CPUs (AMX, AVX512-BF16), GPUs and TPUs are built for. Nothing here knows about
models or layers.

Axes: ``K`` contracted, ``M``/``N`` kept, ``B`` batch of a batched product, ``T``/``S`` rows of its
operands and ``H`` their width.
"""

import functools
import pathlib
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import layout
from jaxtyping import Array, Float

from tunix.ops import quantize

Precision = Literal["exact", "fast"]


@functools.cache
def has_bf16_units() -> bool:
    """Return whether the default device multiplies bfloat16 faster than float32."""
    if jax.default_backend() != "cpu":
        return True
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return False
    flags = set(cpuinfo.read_text().split())
    return bool(flags & {"amx_bf16", "avx512_bf16"})


def resolve_precision(precision: str) -> Precision:
    """Return ``precision``, with ``auto`` resolved to what suits the default device.

    Raises:
        ValueError: if ``precision`` is not one of the three names.
    """
    if precision == "auto":
        return "fast" if has_bf16_units() else "exact"
    if precision not in ("exact", "fast"):
        raise ValueError(f"precision must be 'auto', 'exact' or 'fast', got {precision!r}")
    return precision


def dot(
    x: Float[Array, "... K"], w: Float[Array, "K N"], *, precision: Precision
) -> Float[Array, "... N"]:
    """Return ``x @ w`` in float32; the cotangents have the dtypes of ``x`` and ``w``."""
    rows = x.reshape(-1, x.shape[-1])
    if precision == "exact":
        y = _exact(rows, w, ((1,), (0,)))
    else:
        y = _fast_dot(rows, w, x.dtype, w.dtype)
    return y.reshape(*x.shape[:-1], w.shape[1])


def dot_nt(
    x: Float[Array, "... K"], w: Float[Array, "N K"], *, precision: Precision
) -> Float[Array, "... N"]:
    """Return ``x @ w.T`` in float32: :func:`dot` for a weight stored output-first."""
    rows = x.reshape(-1, x.shape[-1])
    if precision == "exact":
        y = _exact(rows, w, ((1,), (1,)))
    else:
        y = _fast_dot_nt(rows, w, x.dtype, w.dtype)
    return y.reshape(*x.shape[:-1], w.shape[0])


def dot_quantized(
    x: Float[Array, "... K"], q: quantize.Quantized, *, precision: Precision
) -> Float[Array, "... N"]:
    """Return ``x @ w`` in float32 for the frozen matrix ``w`` that ``q`` stands for.

    ``w`` exists only while it is multiplied, forward and backward: nothing dense is saved for
    the backward pass, which has a cotangent for ``x`` alone.
    """
    y = _quantized_dot(x.reshape(-1, x.shape[-1]), q, precision, x.dtype)
    return y.reshape(*x.shape[:-1], y.shape[1])


def batched_dot_nt(
    a: Float[Array, "B T H"], b: Float[Array, "B S H"], *, precision: Precision
) -> Float[Array, "B T S"]:
    """Return ``a[i] @ b[i].T`` for every ``i``, in float32."""
    if precision == "exact":
        return _exact(a, b, ((2,), (2,)), batch=True)
    return _fast_batched_nt(a, b, a.dtype, b.dtype)


def batched_dot_nn(
    a: Float[Array, "B T S"], b: Float[Array, "B S H"], *, precision: Precision
) -> Float[Array, "B T H"]:
    """Return ``a[i] @ b[i]`` for every ``i``, in float32."""
    if precision == "exact":
        return _exact(a, b, ((2,), (1,)), batch=True)
    return _fast_batched_nn(a, b, a.dtype, b.dtype)


def _exact(a: Array, b: Array, contract: tuple, *, batch: bool = False) -> Array:
    dims = (contract, ((0,), (0,)) if batch else ((), ()))
    # An operand of the right type goes in as it is: qwix recognises weights by identity.
    a = a if a.dtype == jnp.float32 else a.astype(jnp.float32)
    b = b if b.dtype == jnp.float32 else b.astype(jnp.float32)
    return jax.lax.dot_general(
        a,
        b,
        dims,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )


def _bf16(a: Array, b: Array, contract: tuple, *, batch: bool = False) -> Array:
    dims = (contract, ((0,), (0,)) if batch else ((), ()))
    a, b = a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)
    # XLA:CPU has no bfloat16 kernel for a single row: a second, empty one is up to 13x faster.
    is_lone_row = a.shape[-2] == 1 and jax.default_backend() == "cpu"
    if is_lone_row:
        a = jnp.pad(a, [(0, 0)] * (a.ndim - 2) + [(0, 1), (0, 0)])
    out = jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)
    return out[..., :1, :] if is_lone_row else out


def transposed(x: Array) -> Array:
    """Return ``x`` with its last two axes swapped, in the memory order fast products need.

    XLA:CPU takes its bfloat16 kernel only if the left operand's contracted axis is the
    contiguous one, and would otherwise fold the transposition into the product.
    """
    swapped = jnp.swapaxes(x, -1, -2)
    if jax.default_backend() != "cpu":
        return swapped
    return layout.with_layout_constraint(swapped, layout.Layout(tuple(range(x.ndim))))


def _fast_dot_forward(x: Array, w: Array, x_dtype: np.dtype, w_dtype: np.dtype) -> Array:
    return _bf16(x, w, ((1,), (0,)))


_fast_dot = jax.custom_vjp(_fast_dot_forward, nondiff_argnums=(2, 3))


def _fast_dot_fwd(x, w, x_dtype, w_dtype):
    x, w = x.astype(jnp.bfloat16), w.astype(jnp.bfloat16)
    return _bf16(x, w, ((1,), (0,))), (x, w)


def _fast_dot_bwd(x_dtype, w_dtype, residuals, g):
    x, w = residuals
    g = g.astype(jnp.bfloat16)
    dx = _bf16(g, w, ((1,), (1,)))
    dw = _bf16(transposed(x), g, ((1,), (0,)))
    return dx.astype(x_dtype), dw.astype(w_dtype)


_fast_dot.defvjp(_fast_dot_fwd, _fast_dot_bwd)


def _fast_dot_nt_forward(x: Array, w: Array, x_dtype: np.dtype, w_dtype: np.dtype) -> Array:
    return _bf16(x, w, ((1,), (1,)))


_fast_dot_nt = jax.custom_vjp(_fast_dot_nt_forward, nondiff_argnums=(2, 3))


def _fast_dot_nt_fwd(x, w, x_dtype, w_dtype):
    x, w = x.astype(jnp.bfloat16), w.astype(jnp.bfloat16)
    return _bf16(x, w, ((1,), (1,))), (x, w)


def _fast_dot_nt_bwd(x_dtype, w_dtype, residuals, g):
    x, w = residuals
    g = g.astype(jnp.bfloat16)
    dx = _bf16(g, w, ((1,), (0,)))
    dw = _bf16(transposed(g), x, ((1,), (0,)))
    return dx.astype(x_dtype), dw.astype(w_dtype)


_fast_dot_nt.defvjp(_fast_dot_nt_fwd, _fast_dot_nt_bwd)


def _fast_batched_nt_forward(a: Array, b: Array, a_dtype: np.dtype, b_dtype: np.dtype) -> Array:
    return _bf16(a, b, ((2,), (2,)), batch=True)


_fast_batched_nt = jax.custom_vjp(_fast_batched_nt_forward, nondiff_argnums=(2, 3))


def _fast_batched_nt_fwd(a, b, a_dtype, b_dtype):
    a, b = a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)
    return _bf16(a, b, ((2,), (2,)), batch=True), (a, b)


def _fast_batched_nt_bwd(a_dtype, b_dtype, residuals, g):
    a, b = residuals
    g = g.astype(jnp.bfloat16)
    da = _bf16(g, b, ((2,), (1,)), batch=True)
    db = _bf16(transposed(g), a, ((2,), (1,)), batch=True)
    return da.astype(a_dtype), db.astype(b_dtype)


_fast_batched_nt.defvjp(_fast_batched_nt_fwd, _fast_batched_nt_bwd)


def _fast_batched_nn_forward(a: Array, b: Array, a_dtype: np.dtype, b_dtype: np.dtype) -> Array:
    return _bf16(a, b, ((2,), (1,)), batch=True)


_fast_batched_nn = jax.custom_vjp(_fast_batched_nn_forward, nondiff_argnums=(2, 3))


def _fast_batched_nn_fwd(a, b, a_dtype, b_dtype):
    a, b = a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)
    return _bf16(a, b, ((2,), (1,)), batch=True), (a, b)


def _fast_batched_nn_bwd(a_dtype, b_dtype, residuals, g):
    a, b = residuals
    g = g.astype(jnp.bfloat16)
    da = _bf16(g, b, ((2,), (2,)), batch=True)
    db = _bf16(transposed(a), g, ((2,), (1,)), batch=True)
    return da.astype(a_dtype), db.astype(b_dtype)


_fast_batched_nn.defvjp(_fast_batched_nn_fwd, _fast_batched_nn_bwd)


def _quantized_dot_forward(
    x: Array, q: quantize.Quantized, precision: Precision, x_dtype: np.dtype
) -> Array:
    return dot(x, quantize.dequantize(q), precision=precision)


_quantized_dot = jax.custom_vjp(_quantized_dot_forward, nondiff_argnums=(2, 3))


def _quantized_dot_fwd(x, q, precision, x_dtype):
    return _quantized_dot_forward(x, q, precision, x_dtype), q


def _quantized_dot_bwd(precision, x_dtype, q, g):
    dx = dot_nt(g, quantize.dequantize(q), precision=precision)
    return dx.astype(x_dtype), None


_quantized_dot.defvjp(_quantized_dot_fwd, _quantized_dot_bwd)
