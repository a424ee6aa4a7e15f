"""Low-rank adapters (LoRA, arXiv:2106.09685) on any projection of the decoder.

A model may have several adapters by name. One is in use: its arrays are the ``nnx.LoRAParam``
variables ``lora_a``, ``lora_b`` (and ``lora_magnitude``) of each projection that it adapts, and
they are what trainers train. The others are parked: kept with the model, not computed with.
"""

import zlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import nnx

from tunix.models import lora_config
from tunix.models.transformer import adapter as adapter_lib
from tunix.models.transformer import decoder as decoder_lib
from tunix.models.transformer import layer as layer_lib
from tunix.models.transformer import projection
from tunix.utils import config as config_lib

ALL_LINEAR = lora_config.ALL_LINEAR
LoraConfig = lora_config.LoraConfig


class AdapterError(ValueError):
    """An adapter name that a model does not have, or has already."""


def apply_lora(
    model: nnx.Module,
    config: LoraConfig,
    *,
    rngs: nnx.Rngs,
    name: str = adapter_lib.DEFAULT,
) -> nnx.Module:
    """Attach an adapter to the matching projections of ``model``, in place, and return it.

    It is used from now on; one that was in use is parked. ``lora_a`` is uniform in
    ``±1/sqrt(in)``, ``lora_b`` zero and ``lora_magnitude`` the length of the base's columns, so
    the model's function is that of the base until the adapter is trained.

    Raises:
        ConfigError: If a pattern matches no projection; the message lists those there are.
        AdapterError: If the model already has an adapter of this name.
    """
    projections = dict(iter_projections(model))
    paths = config.select(projections)
    require_new_name(model, name)
    if config.dropout > 0:
        _require_decoder(model).adapter_dropout = adapter_lib.AdapterDropout(rngs.params())
    park_adapters(model)
    for path in paths:
        module = projections[path]
        *stack, in_features, out_features = module.weight_shape
        rank, bound = config.rank_of(path), in_features**-0.5
        lora_a = jax.random.uniform(
            rngs.params(), (*stack, in_features, rank), jnp.float32, -bound, bound
        )
        module.add_adapter(
            make_settings(
                path,
                name=name,
                alpha=config.alpha_of(path),
                use_rslora=config.use_rslora,
                dropout=config.dropout,
            ),
            lora_a,
            jnp.zeros((*stack, rank, out_features), jnp.float32),
            projection.column_norms(module.dense_weight()) if config.use_dora else None,
        )
    return model


def make_settings(
    path: str, *, name: str, alpha: float, use_rslora: bool, dropout: float
) -> adapter_lib.AdapterSettings:
    """Return the static settings of the adapter of the projection at a module path."""
    return adapter_lib.AdapterSettings(
        name=name,
        alpha=alpha,
        use_rslora=use_rslora,
        dropout=dropout,
        stream=zlib.crc32(path.rsplit(".", 1)[-1].encode()),
    )


def adapter_names(model: nnx.Module) -> tuple[str, ...]:
    """Return the names of all adapters, sorted."""
    names: set[str] = set()
    for _, module in iter_projections(model):
        names |= set(module.parked) | ({module.adapter.name} if module.adapter else set())
    return tuple(sorted(names))


def active_adapter(model: nnx.Module) -> str | None:
    """Return the name of the adapter in use."""
    found = (module.adapter for _, module in iter_projections(model))
    return next((adapter.name for adapter in found if adapter is not None), None)


def set_adapter(model: nnx.Module, name: str) -> None:
    """Use the adapter ``name``, in place; the one that was in use is parked.

    Trainers and samplers made before hold the structure of the model as it was: make them anew.

    Raises:
        AdapterError: If there is no such adapter.
    """
    require_adapter(model, name)
    if active_adapter(model) == name:
        return
    modules = [module for _, module in iter_projections(model)]
    park_adapters(model)
    for module in modules:
        if name in module.parked:
            module.unpark_adapter(name)


def remove_adapter(model: nnx.Module, name: str) -> None:
    """Remove an adapter without merging it; if it was in use, none is in use afterwards.

    Raises:
        AdapterError: If there is no such adapter.
    """
    require_adapter(model, name)
    for _, module in iter_projections(model):
        module.parked.pop(name, None)
        if module.adapter is not None and module.adapter.name == name:
            module.drop_adapter()


def park_adapters(model: nnx.Module) -> None:
    """Put the adapter in use aside, so that the model computes its base."""
    for _, module in iter_projections(model):
        module.park_adapter()


def require_adapter(model: nnx.Module, name: str) -> None:
    """Raise unless the model has an adapter of this name."""
    names = adapter_names(model)
    if name not in names:
        hint = config_lib.did_you_mean(name, names)
        raise AdapterError(f"the model has no adapter {name!r}; it has {list(names)}{hint}")


def require_new_name(model: nnx.Module, name: str) -> None:
    """Raise if the model has an adapter of this name."""
    if name in adapter_names(model):
        raise AdapterError(
            f"the model already has an adapter {name!r}; choose another name, or remove it with "
            "lora.remove_adapter"
        )


def merge_lora(model: nnx.Module) -> nnx.Module:
    """Put the adapter in use into the weights and remove it; the model is changed in place.

    Quantised matrices become dense, with or without an adapter: what their codes stand for, plus
    the adapter, in the ``param_dtype`` they had. Parked adapters belong to the base that was, and
    go.
    """
    for _, module in iter_projections(model):
        if module.adapter is not None or isinstance(module.w, projection.QuantizedWeight):
            module.set_weight(module.merged_weight())
        module.drop_adapter()
        module.parked.clear()
    if isinstance(model, decoder_lib.Decoder):
        model.adapter_dropout = None
    return model


def is_lora_enabled(model: nnx.Module) -> bool:
    """Return whether any parameter of ``model`` is an adapter."""
    return bool(jax.tree.leaves(nnx.state(model, nnx.LoRAParam)))


def iter_projections(model: nnx.Module) -> Iterator[tuple[str, projection.Projection]]:
    """Yield every projection of the decoder's layers with its dotted path.

    Those of an image tower are not among them: it gets no adapters and stays as it is.
    """
    for path, layer in nnx.iter_modules(model):
        if not isinstance(layer, layer_lib.DecoderLayer):
            continue
        for inner, module in nnx.iter_modules(layer):
            if isinstance(module, projection.Projection):
                yield ".".join(map(str, (*path, *inner))), module


def _require_decoder(model: nnx.Module) -> decoder_lib.Decoder:
    if not isinstance(model, decoder_lib.Decoder):
        problem = (
            f"dropout needs a tunix decoder, whose forward pass takes a key, got {type(model)}"
        )
        raise config_lib.ConfigError("LoraConfig", [problem])
    return model
