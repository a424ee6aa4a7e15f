"""Attention by cuDNN's fused kernel, for NVIDIA GPUs.

What is not plain causality becomes a mask of all pairs of tokens, which the kernel reads for every
head; the scores themselves never exist at once. Axes as in :mod:`tunix.ops.attention`.
"""

from collections.abc import Iterator
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tunix.ops import visibility as visibility_lib

MOST_PAIRS = 2**29
"""Pairs of a mask, which the kernel takes as bfloat16: 1 GiB."""


def problems(
    q: Float[Array, "B T N H"],
    visibility: visibility_lib.Visibility,
    *,
    window: int | Int[Array, ""] | None,
    softcap: float | None,
) -> Iterator[str]:
    """Yield why cuDNN does not compute this."""
    batch, length, _, width = q.shape
    capability = compute_capability()
    if capability < (8, 0):
        yield f"needs an NVIDIA GPU of compute capability 8.0 or more, found {capability}"
    widest = 256 if capability >= (9, 0) else 128
    if width % 8 or width > widest:
        yield f"needs a head width that is a multiple of 8 up to {widest}, got {width}"
    if softcap is not None:
        yield "has no softcap"
    if not _is_causal(visibility, window):
        if length % 2:
            yield f"needs rows of an even length where there is a mask, got {length}"
        if batch * length**2 > MOST_PAIRS:
            yield f"needs a mask of {batch} x {length} x {length} pairs, above {MOST_PAIRS}"


def compute_capability() -> tuple[int, ...]:
    """Return the compute capability of the first device; of no NVIDIA GPU ``()``."""
    parts = str(getattr(jax.local_devices()[0], "compute_capability", "")).split(".")
    return tuple(map(int, parts)) if all(part.isdecimal() for part in parts) else ()


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    visibility: visibility_lib.Visibility,
    *,
    scale: float,
    window: int | Int[Array, ""] | None,
    softcap: None,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "B T N H"]:
    """Return attention of operands rounded to bfloat16, in float32."""
    del softcap
    shape, mask, is_causal = q.shape[:2], None, _is_causal(visibility, window)
    seen = None if is_causal else visibility.pairs(shape, window=window)
    if seen is not None:
        mask = visibility_lib.without_blind(seen)[:, None]
    out = jax.nn.dot_product_attention(
        *(x.astype(jnp.bfloat16) for x in (q, k, v)),
        mask=mask,
        scale=scale,
        is_causal=is_causal,
        implementation=implementation,
    ).astype(jnp.float32)
    # A softmax over nothing is NaN, so whoever sees nothing saw itself.
    return out if seen is None else jnp.where(seen.any(axis=-1)[..., None, None], out, 0.0)


def _is_causal(visibility: visibility_lib.Visibility, window: int | Int[Array, ""] | None) -> bool:
    """Return whether tokens see all of their row up to themselves."""
    return window is None and not visibility.restrictions
