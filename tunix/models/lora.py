"""Low-rank adapters (LoRA, arXiv:2106.09685) on any projection of the decoder."""

import dataclasses
import re
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import nnx

from tunix.models.transformer import projection
from tunix.utils import config as config_lib

ALL_LINEAR = "all-linear"
"""Pattern that adapts every projection of attention and MLP."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig(config_lib.Config):
    """Which projections get adapters, and how large they are."""

    rank: int
    alpha: float
    """The adapter's output is multiplied with ``alpha / rank``."""
    module_path: str = ALL_LINEAR
    """A regular expression for module paths (``.*q_proj|.*v_proj``), or ``all-linear``."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings."""
        yield from super().problems()
        if self.rank < 1:
            yield f"rank must be at least 1, got {self.rank}"
        if not self.alpha > 0:
            yield f"alpha must be positive, got {self.alpha}"
        for part in _alternatives(self.module_path):
            try:
                re.compile(part)
            except re.error as error:
                yield f"module_path {part!r} is not a regular expression: {error}"


def apply_lora(model: nnx.Module, config: LoraConfig, *, rngs: nnx.Rngs) -> nnx.Module:
    """Attach adapters to the matching projections of ``model``, in place, and return it.

    ``lora_a`` is uniform in ``±1/sqrt(in)`` and ``lora_b`` zero, so the model's function
    does not change until the adapters are trained.

    Raises:
        ConfigError: If an alternative of ``module_path`` matches no projection; the message
            lists the projections there are.
    """
    projections = {path: module for path, module in iter_projections(model)}
    for path in match_projections(config.module_path, projections):
        module = projections[path]
        *stack, in_features, out_features = module.w.shape
        bound = in_features**-0.5
        lora_a = jax.random.uniform(
            rngs.params(), (*stack, in_features, config.rank), jnp.float32, -bound, bound
        )
        lora_b = jnp.zeros((*stack, config.rank, out_features), jnp.float32)
        module.add_adapter(lora_a, lora_b, config.alpha / config.rank)
    return model


def merge_lora(model: nnx.Module) -> nnx.Module:
    """Add every adapter to its weight, remove it, and return the model (changed in place)."""
    for _, module in iter_projections(model):
        if module.lora_scale is not None:
            module.w[...] = merged_weight(
                module.w[...], module.lora_a[...], module.lora_b[...], module.lora_scale
            )
            module.drop_adapter()
    return model


def merged_weight(w: jax.Array, lora_a: jax.Array, lora_b: jax.Array, scale: float) -> jax.Array:
    """Return ``w + scale * lora_a @ lora_b`` in the dtype of ``w``; leading axes are batched."""
    update = jnp.matmul(lora_a, lora_b, precision=jax.lax.Precision.HIGHEST)
    return (w.astype(jnp.float32) + scale * update).astype(w.dtype)


def is_lora_enabled(model: nnx.Module) -> bool:
    """Return whether any parameter of ``model`` is an adapter."""
    return bool(jax.tree.leaves(nnx.state(model, nnx.LoRAParam)))


def iter_projections(model: nnx.Module) -> Iterator[tuple[str, projection.Projection]]:
    """Yield every projection with its dotted path."""
    for path, module in nnx.iter_modules(model):
        if isinstance(module, projection.Projection):
            yield ".".join(map(str, path)), module


def match_projections(
    pattern: str, projections: dict[str, projection.Projection]
) -> tuple[str, ...]:
    """Return the paths that ``pattern`` selects, in order.

    Raises:
        ConfigError: If any alternative of the pattern selects nothing.
    """
    if pattern == ALL_LINEAR:
        return tuple(projections)
    matched: set[str] = set()
    problems = []
    for part in _alternatives(pattern):
        found = {path for path in projections if re.fullmatch(f"(?:.*\\.)?(?:{part})", path)}
        if not found:
            names = sorted({path.rsplit(".", 1)[-1] for path in projections})
            hint = config_lib.did_you_mean(part.removeprefix(".*"), names)
            problems.append(f"module_path {part!r} matches no projection; there are {names}{hint}")
        matched |= found
    if problems:
        raise config_lib.ConfigError("LoraConfig", problems)
    return tuple(path for path in projections if path in matched)


def _alternatives(pattern: str) -> list[str]:
    """Split a pattern at its top-level ``|``, so that each alternative must match something."""
    parts, depth, start = [], 0, 0
    for i, char in enumerate(pattern):
        escaped = i > 0 and pattern[i - 1] == "\\"
        depth += (char == "(") - (char == ")") if not escaped else 0
        if char == "|" and depth == 0 and not escaped:
            parts.append(pattern[start:i])
            start = i + 1
    return [*parts, pattern[start:]]
