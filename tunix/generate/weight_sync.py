"""The sampler's own copy of a model's weights: cast, re-laid, re-sharded.

Layers are unrolled, one leaf a layer: slicing a stack would copy every weight for
every token. In ``fast`` precision matrices are stored in bfloat16, exactly the
operands that a trainer in ``fast`` precision multiplies; norms and biases stay
float32, and so does the embedding table that tokens are looked up in (a tied head
gets a bfloat16 copy of it). In ``exact`` precision nothing is cast. Adapters are not
merged: a sampler computes with the same graph as the trainer, so that the two agree
on every log-probability. For the same reason, and because few bits are what a quantised
base is for, its matrices stay quantised: codes and scales are copied as they are, and a
matrix is dense only while it is multiplied.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from tunix.models import lora
from tunix.models.transformer import adapter as adapter_lib
from tunix.models.transformer import decoder, layout
from tunix.ops import dot
from tunix.utils import problems as problems_lib


class WeightMismatchError(problems_lib.ProblemsError):
    """Weights that do not fit the sampler's model, with every reason why."""

    headline = "the weights do not fit the sampler's model"


@flax.struct.dataclass
class SamplerWeights:
    """A pytree of what the compiled programs read."""

    state: nnx.State
    head: Float[Array, "V D"] | None
    """Output matrix, where the model's own is not in the dtype that products want."""


class WeightSync:
    """Turns a trainer's weights into a sampler's."""

    def __init__(self, model: decoder.Decoder):
        """Learn the structure of ``model``; its weights are not read."""
        decoder.require_hidden(model)
        self._is_stacked = model.config.scan_layers
        self._is_fast = dot.resolve_precision(model.config.precision) == "fast"
        self._is_tied = model.config.weight_tying
        self._shapes = shapes_of(nnx.state(model))
        self._adapters = _adapters_of(model)
        self.config = dataclasses.replace(model.config, scan_layers=False)
        self.graphdef: nnx.GraphDef[Any] = _unrolled_graphdef(model)
        self._lay_out = jax.jit(self._lay_out_state)

    @property
    def cache_dtype(self) -> jnp.dtype:
        """Dtype of cached keys and values: that of the products that read them."""
        return jnp.dtype(jnp.bfloat16 if self._is_fast else jnp.float32)

    def __call__(self, source: nnx.Module | nnx.State) -> SamplerWeights:
        """Return a copy of the weights that shares no buffer with ``source``.

        Raises:
            WeightMismatchError: Listing every missing, unexpected or misshapen leaf, and every
                adapter whose settings changed.
        """
        state = nnx.state(source) if isinstance(source, nnx.Module) else source
        problems = list(differences(self._shapes, shapes_of(state)))
        if isinstance(source, nnx.Module):
            found = _adapters_of(source)
            problems += [
                f"the adapter of {path} is {found.get(path)}, expected {self._adapters.get(path)}"
                for path in sorted(self._adapters.keys() | found.keys())
                if self._adapters.get(path) != found.get(path)
            ]
        if problems:
            raise WeightMismatchError(problems)
        return self._lay_out(state)

    def update(self, weights: SamplerWeights, changed: nnx.State) -> SamplerWeights:
        """Return ``weights`` with copies of those in ``changed``; the others are not touched.

        Raises:
            WeightMismatchError: Listing every unexpected or misshapen leaf.
        """
        found = shapes_of(changed)
        expected = {path: self._shapes[path] for path in found if path in self._shapes}
        if problems := list(differences(expected, found)):
            raise WeightMismatchError(problems)
        new = self._lay_out(changed)
        flat = dict(nnx.to_flat_state(weights.state)) | dict(nnx.to_flat_state(new.state))
        return SamplerWeights(
            state=nnx.from_flat_state(flat.items()),
            head=weights.head if new.head is None else new.head,
        )

    def _lay_out_state(self, state: nnx.State) -> SamplerWeights:
        if self._is_stacked:
            state = layout.unroll_state(state)
        flat = dict(nnx.to_flat_state(state))
        table = flat.get(("embed_tokens", "w"))
        needs_head = self._is_fast and self._is_tied
        head = table[...].astype(jnp.bfloat16) if needs_head and table is not None else None
        # A copy where there is nothing to cast: the trainer donates its own buffers.
        cast = {path: leaf.replace(self._cast(path, leaf)) for path, leaf in flat.items()}
        return SamplerWeights(state=nnx.from_flat_state(cast.items()), head=head)

    def _cast(self, path: tuple[Any, ...], leaf: nnx.Variable) -> Array:
        array = leaf.get_value()
        is_operand = isinstance(leaf, nnx.Param) and array.ndim >= 2 and path[0] != "embed_tokens"
        if self._is_fast and is_operand and array.dtype != jnp.bfloat16:
            return array.astype(jnp.bfloat16)
        return jnp.array(array, copy=True)


def _adapters_of(model: nnx.Module) -> dict[str, adapter_lib.AdapterSettings]:
    """Return the settings of every adapter in use by its module path: they are not in the state."""
    found = {path: module.adapter for path, module in lora.iter_projections(model)}
    return {path: adapter for path, adapter in found.items() if adapter is not None}


def _unrolled_graphdef(model: decoder.Decoder) -> nnx.GraphDef[Any]:
    """Return the structure of ``model`` as a list of layers, without copying a weight."""
    graphdef, state = nnx.split(model)
    unrolled = nnx.eval_shape(lambda s: layout.unroll_layers(nnx.merge(graphdef, s)), state)
    return nnx.graphdef(unrolled)


def shapes_of(state: nnx.State) -> dict[str, tuple[int, ...]]:
    """Return the shape of every leaf by its dotted path."""
    return {".".join(map(str, path)): leaf.shape for path, leaf in nnx.to_flat_state(state)}


def differences(
    expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]
) -> Iterator[str]:
    """Yield one sentence per leaf that is missing, unexpected or misshapen."""
    for path in sorted(expected.keys() | found.keys()):
        if path not in found:
            yield f"{path} {expected[path]} is missing"
        elif path not in expected:
            yield f"{path} {found[path]} is unexpected"
        elif expected[path] != found[path]:
            yield f"{path} has shape {found[path]}, expected {expected[path]}"
