"""Rotary position embedding and the ways to stretch it (arXiv:2104.09864).

Nothing here knows about attention. Axes: ``B`` rows, ``T`` tokens, ``N`` heads, ``H`` head width.
"""

import dataclasses
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from tunix.utils import config

SCALING_KINDS = ("linear", "llama3")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling(config.Config):
    """How the frequencies of a model are stretched beyond the length it was first trained on."""

    kind: str
    """``linear`` divides every frequency by ``factor``; ``llama3`` spares the high ones."""

    factor: float
    """How many times longer the context became."""

    low_freq_factor: float = 1.0
    """llama3: wavelengths above ``original_max_position / low_freq_factor`` are stretched fully."""

    high_freq_factor: float = 4.0
    """llama3: wavelengths below ``original_max_position / high_freq_factor`` are kept."""

    original_max_position: int = 8192
    """llama3: context length of the first training."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings."""
        yield from super().problems()
        if self.kind not in SCALING_KINDS:
            yield f"kind must be one of {list(SCALING_KINDS)}, got {self.kind!r}"
        if self.factor < 1.0:
            yield f"factor must be at least 1, got {self.factor}"
        if not 0.0 < self.low_freq_factor < self.high_freq_factor:
            yield (
                "low_freq_factor must be positive and below high_freq_factor, got "
                f"{self.low_freq_factor} and {self.high_freq_factor}"
            )
        if self.original_max_position < 1:
            yield f"original_max_position must be positive, got {self.original_max_position}"


def rope_frequencies(
    head_dim: int, theta: float, scaling: RopeScaling | None = None
) -> Float[np.ndarray, " half"]:
    """Return the angle per position of each pair of channels, float32 rounded from float64.

    Raises:
        ValueError: if ``head_dim`` is odd.
    """
    if head_dim % 2:
        raise ValueError(f"head_dim must be even to rotate pairs of channels, got {head_dim}")
    frequencies = float(theta) ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if scaling is None:
        return frequencies.astype(np.float32)
    stretched = frequencies / scaling.factor
    if scaling.kind == "linear":
        return stretched.astype(np.float32)
    turns = scaling.original_max_position * frequencies / (2.0 * np.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    # Turns in the original context: above `high` keep, below `low` stretch, blend between.
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (keep * frequencies + (1.0 - keep) * stretched).astype(np.float32)


def rope_angles(
    positions: Int[Array, "B T"], frequencies: Float[np.ndarray | Array, " half"]
) -> tuple[Float[Array, "B T 1 half"], Float[Array, "B T 1 half"]]:
    """Return sine and cosine of every position's angles, to be shared by all layers."""
    angles = positions[:, :, None, None].astype(jnp.float32) * jnp.asarray(frequencies)
    return jnp.sin(angles), jnp.cos(angles)


def apply_rope(
    x: Float[Array, "B T N H"],
    sin: Float[Array, "B T 1 half"],
    cos: Float[Array, "B T 1 half"],
) -> Float[Array, "B T N H"]:
    """Return ``x`` rotated in float32; channel ``i`` is paired with ``i + H/2`` as in HF models."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
