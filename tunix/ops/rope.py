"""Rotary position embedding and the ways to stretch it (arXiv:2104.09864).

Nothing here knows about attention. Axes: ``B`` rows, ``T`` tokens, ``N`` heads, ``H`` head width.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from tunix.utils import config

SCALING_KINDS = ("linear", "llama3", "yarn", "dynamic")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling(config.Config):
    """How the frequencies of a model are stretched beyond the length it was first trained on."""

    kind: str
    """``linear`` divides every frequency by ``factor``; ``llama3`` and ``yarn`` (arXiv:2309.00071)
    spare the high ones, each in its way; ``dynamic`` raises the base with the length of a row."""

    factor: float
    """How many times longer the context became."""

    original_max_position: int = 8192
    """All but linear: context length of the first training."""

    low_freq_factor: float = 1.0
    """llama3: wavelengths above ``original_max_position / low_freq_factor`` are stretched fully."""

    high_freq_factor: float = 4.0
    """llama3: wavelengths below ``original_max_position / high_freq_factor`` are kept."""

    beta_fast: float = 32.0
    """yarn: channels that turn more often than this in the original context are kept."""

    beta_slow: float = 1.0
    """yarn: channels that turn less often than this are stretched fully."""

    attention_factor: float | None = None
    """yarn: factor of rotated queries and of keys; by default ``0.1 * ln(factor) + 1``."""

    truncate: bool = True
    """yarn: whether the borders between the channels are rounded outwards to whole ones."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings."""
        yield from super().problems()
        if self.kind not in SCALING_KINDS:
            hint = config.did_you_mean(str(self.kind), SCALING_KINDS)
            yield f"kind must be one of {list(SCALING_KINDS)}, got {self.kind!r}{hint}"
        if self.factor < 1.0:
            yield f"factor must be at least 1, got {self.factor}"
        if not 0.0 < self.low_freq_factor < self.high_freq_factor:
            yield (
                "low_freq_factor must be positive and below high_freq_factor, got "
                f"{self.low_freq_factor} and {self.high_freq_factor}"
            )
        if not 0.0 < self.beta_slow < self.beta_fast:
            yield (
                "beta_slow must be positive and below beta_fast, got "
                f"{self.beta_slow} and {self.beta_fast}"
            )
        if self.attention_factor is not None and not self.attention_factor > 0.0:
            yield f"attention_factor must be positive, got {self.attention_factor}"
        if self.original_max_position < 1:
            yield f"original_max_position must be positive, got {self.original_max_position}"

    @property
    def magnitude(self) -> float:
        """What rotated queries and keys are multiplied with."""
        if self.kind != "yarn":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        return 0.1 * math.log(self.factor) + 1.0


class Rotation(NamedTuple):
    """Sine and cosine of every token's angles, shared by all heads."""

    sin: Float[Array, "B T 1 half"]
    cos: Float[Array, "B T 1 half"]


def rotation(
    positions: Int[Array, "B T"], head_dim: int, theta: float, scaling: RopeScaling | None = None
) -> Rotation:
    """Return the rotation of every position.

    Under ``dynamic`` scaling the base depends on the last position of the row, so a cache filled
    beyond the original length holds keys of earlier, smaller bases, as in every implementation.

    Raises:
        ValueError: if ``head_dim`` is odd.
    """
    if scaling is not None and scaling.kind == "dynamic":
        frequencies = _dynamic_frequencies(positions, head_dim, theta, scaling)
    else:
        frequencies = rope_frequencies(head_dim, theta, scaling)
    sin, cos = rope_angles(positions, frequencies)
    magnitude = 1.0 if scaling is None else scaling.magnitude
    return Rotation(sin * magnitude, cos * magnitude)


def rope_frequencies(
    head_dim: int, theta: float, scaling: RopeScaling | None = None
) -> Float[np.ndarray, " half"]:
    """Return the angle per position of each pair of channels, float32 rounded from float64.

    Under ``dynamic`` scaling those of rows within the original length.

    Raises:
        ValueError: if ``head_dim`` is odd.
    """
    if head_dim % 2:
        raise ValueError(f"head_dim must be even to rotate pairs of channels, got {head_dim}")
    frequencies = float(theta) ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if scaling is None or scaling.kind == "dynamic":
        return frequencies.astype(np.float32)
    stretched = frequencies / scaling.factor
    if scaling.kind == "linear":
        return stretched.astype(np.float32)
    keep = _kept_llama3(frequencies, scaling)
    if scaling.kind == "yarn":
        keep = _kept_yarn(head_dim, theta, scaling)
    return (keep * frequencies + (1.0 - keep) * stretched).astype(np.float32)


def _kept_llama3(
    frequencies: Float[np.ndarray, " half"], scaling: RopeScaling
) -> Float[np.ndarray, " half"]:
    """Return the share of each frequency that is kept, by its turns in the original context."""
    turns = scaling.original_max_position * frequencies / (2.0 * np.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    return np.clip((turns - low) / (high - low), 0.0, 1.0)


def _kept_yarn(head_dim: int, theta: float, scaling: RopeScaling) -> Float[np.ndarray, " half"]:
    """Return the share of each frequency that is kept: a ramp over channels (section 3.2)."""

    def channel(turns: float) -> float:
        """Return which channel turns so often in the original context."""
        wavelength = scaling.original_max_position / turns
        return head_dim * math.log(wavelength / (2.0 * math.pi)) / (2.0 * math.log(theta))

    first, last = channel(scaling.beta_fast), channel(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    # The published code bounds the ramp by the head's width, not by half of it.
    first, last = max(first, 0), min(last, head_dim - 1)
    width = last - first or 1e-3
    return 1.0 - np.clip((np.arange(head_dim // 2) - first) / width, 0.0, 1.0)


def _dynamic_frequencies(
    positions: Int[Array, "B T"], head_dim: int, theta: float, scaling: RopeScaling
) -> Float[Array, "B 1 1 half"]:
    """Return frequencies whose base grows with the row, so that the slowest channel keeps up."""
    original = scaling.original_max_position
    length = jnp.maximum(positions.max(axis=1) + 1, original).astype(jnp.float32)
    growth = scaling.factor * length / original - (scaling.factor - 1.0)
    exponents = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    base = theta * growth ** (head_dim / (head_dim - 2))
    return base[:, None, None, None] ** -exponents


def rope_angles(
    positions: Int[Array, "B T"],
    frequencies: Float[np.ndarray | Array, " half"] | Float[Array, "B 1 1 half"],
) -> tuple[Float[Array, "B T 1 half"], Float[Array, "B T 1 half"]]:
    """Return sine and cosine of every position's angles."""
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
