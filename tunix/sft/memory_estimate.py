"""How much memory training will take, said before the first compilation.

Parameters, gradients and optimizer state are counted from their shapes. What the backward pass
keeps and works with is estimated from the decoder's config; the compiler may do a little better or
worse.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tunix.models.transformer import config as config_lib
from tunix.perf import machine

_FLOAT = 4
"""Bytes of a value of an activation; they are float32."""

_HEAD_BYTES = 32 << 20
"""What the fused head works with, whatever the vocabulary: a few tiles of logits."""


REMEDIES = ("a smaller batch_size with gradient_accumulation_steps", "shorter rows")

RL_REMEDIES = (
    "a smaller train_micro_batch_size",
    "a smaller rollout_micro_batch_size",
    "fewer total_generation_steps",
)


@dataclasses.dataclass(frozen=True)
class MemoryEstimate:
    """Bytes at the peak of a training step, on all devices together."""

    trained: int
    """The trained parameters."""
    frozen: int
    """Parameters without a gradient: the base of a LoRA run, a reference model."""
    optimizer: int
    gradients: int
    activations: int
    """What one micro-batch's backward pass keeps and works with."""
    sampling: int = 0
    """What an engine holds to sample with: its own weights, keys and values."""

    @property
    def total(self) -> int:
        """All of it."""
        return sum(dataclasses.astuple(self))

    def __str__(self) -> str:
        """Return one line for people."""
        parts = [
            f"{name} {_gigabytes(size)}"
            for name, size in dataclasses.asdict(self).items()
            if size >= 5_000_000
        ]
        return f"about {_gigabytes(self.total)}: {', '.join(parts)}"


def estimate(
    params: Mapping[str, Any],
    frozen: Mapping[str, Any],
    opt_state: Any,
    config: config_lib.TransformerConfig | None,
    *,
    rows: int,
    length: int,
) -> MemoryEstimate:
    """Return what a step of ``rows`` x ``length`` tokens per micro-batch will take.

    Args:
        params: Trained parameters, arrays or ``ShapeDtypeStruct``.
        frozen: The others.
        opt_state: State of the optimizer.
        config: Of the decoder; ``None`` counts no activations.
        rows: Rows of a micro-batch.
        length: Tokens of a row.
    """
    trained = num_bytes(params)
    return MemoryEstimate(
        trained=trained,
        frozen=num_bytes(frozen),
        optimizer=num_bytes(opt_state),
        gradients=trained,
        activations=0 if config is None else activation_bytes(config, rows * length),
    )


def activation_bytes(config: config_lib.TransformerConfig, tokens: int) -> int:
    """Return what the backward pass of so many tokens keeps, and its largest working set.

    With ``nothing_saveable`` every layer keeps its input alone and is computed again; with
    ``dots_saveable`` the results of its products too; with ``none`` everything in it.
    """
    heads = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    mlp = config.hidden_dim * (config.num_experts_per_tok or 1)
    products = heads + 2 * config.embed_dim + 2 * mlp
    everything = 2 * products + config.num_heads * config.head_dim + 2 * mlp
    kept = {"nothing_saveable": 0, "dots_saveable": products, "none": everything}[config.remat]
    per_token = config.num_layers * (config.embed_dim + kept) + everything
    return tokens * per_token * _FLOAT + _HEAD_BYTES


def available_bytes() -> int | None:
    """Return the memory that training can have: of all devices, or of the host without any."""
    limit = machine.device_bytes_limit()
    if limit is not None:
        return limit * jax.device_count()
    return machine.host_bytes_available()


def warning(
    found: MemoryEstimate, available: int | None, remedies: Sequence[str] = REMEDIES
) -> str | None:
    """Return what to tell the user if the estimate exceeds what there is, and what may help."""
    if available is None or found.total <= available:
        return None
    remedies = list(remedies)
    if found.optimizer + found.gradients > found.activations:
        remedies.insert(0, "LoRA, which has next to no gradients and optimizer state")
    return (
        f"training needs {found}, and there are {_gigabytes(available)} free; consider "
        f"{' or '.join(remedies)}"
    )


def num_bytes(tree: Any) -> int:
    """Return what the arrays of a tree take, or would take if they have shapes only."""
    return sum(math.prod(leaf.shape) * _itemsize(leaf) for leaf in jax.tree.leaves(tree))


def _itemsize(leaf: Any) -> int:
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return 8 if is_key else np.dtype(leaf.dtype).itemsize


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
