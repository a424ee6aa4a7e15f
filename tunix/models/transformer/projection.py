"""One weight matrix, the product that applies it, and its low-rank adapter.

A module of its own because adapters, checkpoints and sharding rules address
weights by module path: ``layers.self_attn.q_proj`` holds ``w``, ``b`` if it has
a bias, and ``lora_a``, ``lora_b`` (``lora_magnitude`` with DoRA) once adapted.
A quantised matrix is ``w.codes``, ``w.scales`` and so on.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from tunix.models.transformer import adapter as adapter_lib
from tunix.models.transformer import config as config_lib
from tunix.ops import dot as dot_lib
from tunix.ops import quantize

INIT_STD = 0.02
"""Standard deviation of freshly initialised matrices, as in GPT-2 and Llama."""


class MatrixSharding(NamedTuple):
    """Where a matrix lives on a mesh, so that what belongs to it can live there, too."""

    mesh: Mesh
    stack: tuple[Any, ...]
    rows: Any
    columns: Any

    @classmethod
    def of(cls, w: Array) -> "MatrixSharding | None":
        """Return that of a matrix; ``None`` on a single device or where ``w`` is traced."""
        sharding = None if isinstance(w, jax.core.Tracer) else w.sharding
        if not isinstance(sharding, NamedSharding) or not isinstance(sharding.mesh, Mesh):
            return None
        spec = tuple(sharding.spec)
        *stack, rows, columns = spec + (None,) * (w.ndim - len(spec))
        return cls(sharding.mesh, tuple(stack), rows, columns)

    def place(self, array: Array, *axes: Any) -> Array:
        """Return ``array`` on the mesh, its axes behind the stack as given."""
        spec = PartitionSpec(*self.stack, *axes)
        return jax.device_put(array, NamedSharding(self.mesh, spec))


class QuantizedWeight(nnx.Module):
    """A frozen matrix in few bits, sharded like the matrix it stands for.

    Scales are small and whole along the rows, whose blocks a mesh axis need not divide.
    """

    def __init__(
        self,
        q: quantize.Quantized,
        axes: tuple[str, str],
        dtype: jnp.dtype,
        sharding: MatrixSharding | None,
    ):
        codes, scales, blocks, offset = q.codes, q.scales, q.scale_blocks, q.scale_offset
        if sharding is not None:
            codes = sharding.place(codes, sharding.rows, sharding.columns)
            scales = sharding.place(scales, None, sharding.columns)
            blocks = None if blocks is None else sharding.place(blocks, None, None)
            offset = None if offset is None else sharding.place(offset)
        self.kind: quantize.Kind = q.kind
        self.dtype = dtype  # of the matrix that was
        self.codes = adapter_lib.Frozen(codes, logical_axes=axes)
        self.scales = adapter_lib.Frozen(scales, logical_axes=(None, axes[1]))
        self.scale_blocks = self.scale_offset = nnx.data(None)
        if blocks is not None:
            self.scale_blocks = adapter_lib.Frozen(blocks, logical_axes=(None, None))
            self.scale_offset = adapter_lib.Frozen(offset, logical_axes=())

    @property
    def value(self) -> quantize.Quantized:
        """The arrays, as :mod:`tunix.ops.quantize` takes them."""
        blocks = None if self.scale_blocks is None else self.scale_blocks[...]
        offset = None if self.scale_offset is None else self.scale_offset[...]
        return quantize.Quantized(self.codes[...], self.scales[...], blocks, offset, self.kind)


class ParkedAdapter(nnx.Module):
    """An adapter that is not in use: neither computed with nor trained."""

    def __init__(self, settings: adapter_lib.AdapterSettings, arrays: Mapping[str, nnx.Variable]):
        self.settings = settings
        self.arrays = nnx.Dict(
            {name: _retyped(variable, adapter_lib.Frozen) for name, variable in arrays.items()}
        )


class Projection(nnx.Module):
    """``y = x @ w (+ b)``, weights stored ``[in, out]``, plus what the adapter adds.

    LoRA adds ``scale * (x @ lora_a) @ lora_b``. DoRA (arXiv:2402.09353) gives every column of
    ``w + scale * lora_a @ lora_b`` the length ``lora_magnitude``; as the paper suggests (section
    4.3) the length it has is a constant to the gradient.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        axes: tuple[str, str],
        config: config_lib.TransformerConfig,
        *,
        bias: bool = False,
        rngs: nnx.Rngs,
    ):
        shape = (in_features, out_features)
        w = INIT_STD * jax.random.normal(rngs.params(), shape, jnp.float32)
        self.axes = axes
        self.w: nnx.Param | QuantizedWeight = nnx.Param(w.astype(config.dtype), logical_axes=axes)
        b = nnx.Param(jnp.zeros((out_features,), config.dtype), logical_axes=axes[1:])
        self.b: nnx.Param | None = b if bias else None
        self.precision: dot_lib.Precision = dot_lib.resolve_precision(config.precision)
        self.adapter: adapter_lib.AdapterSettings | None = None
        self.lora_a: nnx.LoRAParam | None = nnx.data(None)
        self.lora_b: nnx.LoRAParam | None = nnx.data(None)
        self.lora_magnitude: nnx.LoRAParam | None = nnx.data(None)
        self.parked = nnx.Dict()

    def __call__(
        self, x: Float[Array, "*b i"], *, adapters: adapter_lib.AdapterUse = adapter_lib.ON
    ) -> Float[Array, "*b o"]:
        """Return the projected ``x`` in float32, without the adapter if it is not ``active``."""
        y = self._product(x)
        if self.adapter is not None and adapters.active:
            y = self._adapted(x, y, self.adapter, adapters)
        return y if self.b is None else y + self.b[...].astype(jnp.float32)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the matrix, ``[in, out]`` behind the axis of stacked layers."""
        return self.w.value.shape if isinstance(self.w, QuantizedWeight) else self.w.shape

    @property
    def weight_dtype(self) -> jnp.dtype:
        """Dtype of the matrix, of a quantised one that of the matrix it was made from."""
        return self.w.dtype

    def dense_weight(self) -> Array:
        """Return the matrix without its adapter: as it is stored, float32 if it is quantised."""
        if isinstance(self.w, QuantizedWeight):
            return quantize.dequantize(self.w.value)
        return self.w[...]

    def set_weight(self, w: Array | quantize.Quantized) -> None:
        """Replace the matrix by one of the same shape, dense or quantised, in the same place."""
        sharding = self._sharding()
        if isinstance(w, quantize.Quantized):
            self.w = QuantizedWeight(w, self.axes, self.weight_dtype, sharding)
        else:
            w = w if sharding is None else sharding.place(w, sharding.rows, sharding.columns)
            self.w = nnx.Param(w, logical_axes=self.axes)

    def add_adapter(
        self,
        settings: adapter_lib.AdapterSettings,
        lora_a: Array,
        lora_b: Array,
        lora_magnitude: Array | None = None,
    ) -> None:
        """Attach an adapter where the base is and use it; one that was in use is parked.

        Leading axes (stacked layers) are allowed on all arrays.
        """
        self.park_adapter()
        if (sharding := self._sharding()) is not None:
            lora_a, lora_b = (
                sharding.place(lora_a, sharding.rows, None),
                sharding.place(lora_b, None, sharding.columns),
            )
            if lora_magnitude is not None:
                lora_magnitude = sharding.place(lora_magnitude, sharding.columns)
        in_axis, out_axis = self.axes
        self.lora_a = nnx.LoRAParam(lora_a, logical_axes=(in_axis, None))
        self.lora_b = nnx.LoRAParam(lora_b, logical_axes=(None, out_axis))
        if lora_magnitude is not None:
            self.lora_magnitude = nnx.LoRAParam(lora_magnitude, logical_axes=(out_axis,))
        self.adapter = settings

    def adapter_arrays(self) -> dict[str, nnx.LoRAParam]:
        """Return the variables of the adapter in use by name; empty without one."""
        found = {
            "lora_a": self.lora_a,
            "lora_b": self.lora_b,
            "lora_magnitude": self.lora_magnitude,
        }
        return {name: variable for name, variable in found.items() if variable is not None}

    def park_adapter(self) -> None:
        """Put the adapter in use aside, if there is one."""
        if self.adapter is None:
            return
        self.parked[self.adapter.name] = ParkedAdapter(self.adapter, self.adapter_arrays())
        self.drop_adapter()

    def unpark_adapter(self, name: str) -> None:
        """Use the adapter that was parked under ``name``; one that was in use is parked."""
        self.park_adapter()
        parked = self.parked.pop(name)
        for key, variable in parked.arrays.items():
            setattr(self, key, _retyped(variable, nnx.LoRAParam))
        self.adapter = parked.settings

    def drop_adapter(self) -> None:
        """Remove the adapter in use without merging it."""
        self.lora_a = self.lora_b = self.lora_magnitude = None
        self.adapter = None

    def merged_weight(self) -> Array:
        """Return the dense matrix with its adapter; leading axes are batched."""
        w = self.dense_weight()
        if self.adapter is None or self.lora_a is None or self.lora_b is None:
            return w.astype(self.weight_dtype)
        a, b = self.lora_a[...], self.lora_b[...]
        update = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
        merged = w.astype(jnp.float32) + self.adapter.scale(a.shape[-1]) * update
        if self.lora_magnitude is not None:
            merged *= (self.lora_magnitude[...] / column_norms(merged))[..., None, :]
        return merged.astype(self.weight_dtype)

    def _sharding(self) -> MatrixSharding | None:
        w = self.w.codes if isinstance(self.w, QuantizedWeight) else self.w
        return MatrixSharding.of(w[...])

    def _product(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        if isinstance(self.w, QuantizedWeight):
            return dot_lib.dot_quantized(x, self.w.value, precision=self.precision)
        return dot_lib.dot(x, self.w[...], precision=self.precision)

    def _adapted(
        self,
        x: Float[Array, "*b i"],
        y: Float[Array, "*b o"],
        settings: adapter_lib.AdapterSettings,
        adapters: adapter_lib.AdapterUse,
    ) -> Float[Array, "*b o"]:
        """Return ``y``, the product of ``x`` and the base, with what the adapter makes of it."""
        assert self.lora_a is not None and self.lora_b is not None
        a, b = self.lora_a[...], self.lora_b[...]
        dropped = adapters.dropped(x, settings)
        low = dot_lib.dot(x if dropped is None else dropped, a, precision=self.precision)
        scale = settings.scale(a.shape[-1])
        update = scale * dot_lib.dot(low, b, precision=self.precision)
        if self.lora_magnitude is None:
            return y + update
        # Only the part of the base that dropout spares is rescaled, as PEFT does it.
        spared = y if dropped is None else self._product(dropped)
        ratio = self.lora_magnitude[...] / jax.lax.stop_gradient(self._norms(a, b, scale))
        return y + (ratio - 1.0) * spared + ratio * update

    def _norms(
        self, a: Float[Array, "i r"], b: Float[Array, "r o"], scale: float
    ) -> Float[Array, " o"]:
        """Return the length of every column of base plus adapter, as products see them."""
        w = self.dense_weight()
        if self.precision == "fast":  # the operands of the sampler's copy, which is bfloat16
            w = w.astype(jnp.bfloat16)
        update = scale * dot_lib.dot(a, b, precision=self.precision)
        return column_norms(w.astype(jnp.float32) + update)


def column_norms(w: Float[Array, "*s i o"]) -> Float[Array, "*s o"]:
    """Return the length of every column."""
    return jnp.sqrt(jnp.square(w).sum(axis=-2))


def _retyped(variable: nnx.Variable, kind: Any) -> Any:
    """Return the same array and metadata as another type of variable."""
    return kind(variable.get_raw_value(), logical_axes=variable.get_metadata("logical_axes"))
