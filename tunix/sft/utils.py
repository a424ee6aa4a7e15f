"""Small helpers that training scripts call: masks, positions, timing, memory."""

import contextlib
import logging
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from tunix.models import lora

is_lora_enabled = lora.is_lora_enabled

_LOG = logging.getLogger(__name__)


def make_causal_attn_mask(
    input_mask: Bool[Array, "B T"] | Int[Array, "B T"],
) -> Bool[Array, "B T T"]:
    """Return which keys each query may see: real tokens that are not later than itself.

    Args:
        input_mask: True (or 1) where a token is real, False (or 0) where it is padding.
    """
    length = input_mask.shape[-1]
    causal = jnp.tril(jnp.ones((length, length), jnp.bool_))
    return causal[None] & input_mask[:, None, :].astype(jnp.bool_)


def build_positions_from_mask(
    input_mask: Bool[Array, "B T"] | Int[Array, "B T"],
) -> Int[Array, "B T"]:
    """Return the index of each real token among the real tokens of its row.

    Padding before the first real token gets 0, later padding the index of the token before it.
    """
    counts = jnp.cumsum(input_mask.astype(jnp.int32), axis=-1)
    return jnp.maximum(counts - 1, 0)


@contextlib.contextmanager
def time_measure(context: str = "", suppress_logging: bool = False) -> Iterator[None]:
    """Log how long the body of a ``with`` statement took."""
    start = time.perf_counter()
    yield
    if not suppress_logging:
        _LOG.info("%s took %.3f s", context or "block", time.perf_counter() - start)


def show_hbm_usage(title: str = "") -> None:
    """Print the memory that each local device uses, where the device tells."""
    for device in jax.local_devices():
        stats = device.memory_stats()
        if stats is None:
            print(f"{title} {device}: no memory statistics on this kind of device".strip())
            continue
        used = stats["bytes_in_use"] / 2**30
        limit = stats.get("bytes_limit")
        of_limit = "" if limit is None else f" of {limit / 2**30:.2f}"
        print(f"{title} {device}: {used:.2f}{of_limit} GiB in use".strip())
