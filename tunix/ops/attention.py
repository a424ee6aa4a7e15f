"""Grouped-query attention within rows of tokens, by the kernel that suits the platform.

Nothing here knows about projections, rope or layers. Axes: ``B`` rows, ``T`` tokens, ``N`` query
heads, ``K`` key heads, ``H`` head width.
"""

import logging
from types import ModuleType
from typing import NamedTuple

import jax
from jaxtyping import Array, Float, Int

from tunix.ops import cudnn_attention, splash_attention, tiled_attention
from tunix.ops import dot as dot_lib
from tunix.ops import visibility as visibility_lib

_log = logging.getLogger(__name__)

REFERENCE = tiled_attention
"""Computes everything everywhere, and says what the others have to compute."""

KERNELS: dict[str, tuple[ModuleType, ...]] = {
    "cpu": (),
    "gpu": (cudnn_attention,),
    "tpu": (splash_attention,),
}
"""What is tried before the reference: ``problems`` says why not, ``attend`` computes."""


class Choice(NamedTuple):
    """A kernel, and why those before it were not chosen."""

    kernel: ModuleType
    refusals: dict[str, list[str]]


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    visibility: visibility_lib.Visibility | None = None,
    *,
    scale: float,
    window: int | Int[Array, ""] | None = None,
    softcap: float | None = None,
    precision: dot_lib.Precision,
) -> Float[Array, "B T N H"]:
    """Return self-attention within rows, in float32.

    A query that sees nothing returns 0 and has no gradient.

    Args:
        q: Queries; ``N`` must be a multiple of ``K``, heads of a group adjacent.
        k: Keys.
        v: Values.
        visibility: Which keys each query sees; ``None`` means those up to itself in the row.
        scale: Factor of the scores, applied first.
        window: How many latest positions are visible, the query's own included; may be traced.
        softcap: Bound ``c`` of the scores, as ``c * tanh(score / c)``.
        precision: How products are computed; the softmax is always float32.

    Raises:
        ValueError: if ``N`` is not a multiple of ``K``, or ``prefix_ids`` comes alone.
    """
    if q.shape[2] % k.shape[2]:
        raise ValueError(
            f"query heads must be a multiple of key heads, got {q.shape[2]} and {k.shape[2]}"
        )
    if visibility is None:
        visibility = visibility_lib.Visibility()
    if visibility.prefix_ids is not None and visibility.segment_ids is None:
        raise ValueError("prefix_ids name segments, so they need segment_ids; pass both or neither")
    platform = jax.default_backend()
    choice = choose(platform, q, visibility, window=window, softcap=softcap, precision=precision)
    options = {"scale": scale, "window": window, "softcap": softcap}
    if choice.kernel is REFERENCE:
        return REFERENCE.attend(q, k, v, visibility, precision=precision, **options)
    return choice.kernel.attend(q, k, v, visibility, **options)


def choose(
    platform: str,
    q: Float[Array, "B T N H"],
    visibility: visibility_lib.Visibility,
    *,
    window: int | Int[Array, ""] | None,
    softcap: float | None,
    precision: dot_lib.Precision,
) -> Choice:
    """Return the first kernel of a platform without a problem; the log says why not another.

    Only shapes, and which rules there are, decide; not the values of arrays.
    """
    refusals: dict[str, list[str]] = {}
    for kernel in KERNELS.get(platform, ()):
        if precision == "exact":
            found = ["multiplies bfloat16 numbers, precision is exact"]
        else:
            found = list(kernel.problems(q, visibility, window=window, softcap=softcap))
        if not found:
            _log.debug("attention by %s", kernel.__name__)
            return Choice(kernel, refusals)
        refusals[kernel.__name__] = found
        _log.debug("no attention by %s: it %s", kernel.__name__, "; ".join(found))
    return Choice(REFERENCE, refusals)
