"""Attention by JAX's splash kernel, for TPUs: causality, windows and segments.

It is compiled for one device: nothing tells the compiler how to split it over several. Axes as in
:mod:`tunix.ops.attention`.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention
from jaxtyping import Array, Float, Int

from tunix.ops import visibility as visibility_lib

LANES = 128
"""Of what the kernel wants multiples, in tokens and in head width."""


def problems(
    q: Float[Array, "B T N H"],
    visibility: visibility_lib.Visibility,
    *,
    window: int | Int[Array, ""] | None,
    softcap: float | None,
) -> Iterator[str]:
    """Yield why splash does not compute this."""
    del q, softcap
    if jax.device_count() > 1:
        yield f"runs on one device, found {jax.device_count()}"
    if given := [name for name in visibility.restrictions if name != "segment_ids"]:
        yield f"knows only segments, got {', '.join(given)}"
    if window is not None and not isinstance(window, int):
        yield "needs to know the window when it is compiled; the layers of this scan differ"
    elif window is not None and visibility.positions is not None:
        yield "counts a window in places of the row, got positions"


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    visibility: visibility_lib.Visibility,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """Return attention of operands rounded to bfloat16, in float32."""
    _, length, num_heads, width = q.shape
    padded = -(-length // LANES) * LANES
    mask = splash_attention.CausalMask((padded, padded))
    if window is not None:
        mask = splash_attention.LocalMask((padded, padded), (window - 1, 0), offset=0)
    kernel: Any = splash_attention.make_splash_mha_single_device(
        splash_attention.MultiHeadMask([mask] * num_heads),
        block_sizes=_block_sizes(padded),
        attn_logits_soft_cap=softcap,
        interpret=interpret,
    )
    spare = ((0, 0), (0, padded - length))
    operands = (
        jnp.pad(x.astype(jnp.bfloat16), (*spare, (0, 0), (0, -width % LANES))).swapaxes(1, 2)
        for x in (q * scale, k, v)
    )
    segments = visibility.segment_ids
    if segments is None:
        out = jax.vmap(kernel)(*operands)
    else:
        ids = jnp.pad(segments, spare)
        out = jax.vmap(kernel)(*operands, splash_attention.SegmentIds(ids, ids))
    out = out.swapaxes(1, 2)[:, :length, :, :width].astype(jnp.float32)
    # Padding sees padding in the kernel, and nothing by our rule.
    return out if segments is None else jnp.where((segments != 0)[..., None, None], out, 0.0)


def _block_sizes(length: int) -> splash_attention.BlockSizes:
    """Return the largest blocks up to 512 tokens that divide the row."""
    size = next(size for size in (512, 256, LANES) if length % size == 0)
    return splash_attention.BlockSizes(
        block_q=size,
        block_kv=size,
        block_q_dkv=size,
        block_kv_dkv=size,
        block_q_dq=size,
        block_kv_dq=size,
    )
