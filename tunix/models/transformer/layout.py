"""Stacked and unrolled layers: the same weights in two layouts.

Stacked parameters (leading layer axis) are scanned and compile in constant time:
the layout of training. Unrolled parameters are one leaf a layer: the layout of
sampling, where slicing a stack would copy every weight for every token.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tunix.models.transformer import decoder as decoder_lib


def unroll_layers(model: decoder_lib.Decoder) -> decoder_lib.Decoder:
    """Return ``model`` as a list of layers; itself if it already is one."""
    if not model.config.scan_layers:
        return model
    graphdef, stacked = nnx.split(model.layers)
    layers = [nnx.merge(graphdef, _layer_state(stacked, i)) for i in range(model.config.num_layers)]
    return _with_layers(model, nnx.List(layers), scan_layers=False)


def stack_layers(model: decoder_lib.Decoder) -> decoder_lib.Decoder:
    """Return ``model`` with stacked, scanned layers; itself if they already are."""
    if model.config.scan_layers:
        return model
    splits = [nnx.split(layer) for layer in model.layers]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(state for _, state in splits))
    return _with_layers(model, nnx.merge(splits[0][0], stacked), scan_layers=True)


def unroll_state(state: nnx.State) -> nnx.State:
    """Return the state of an unrolled model for the state of a stacked one; pure, so jittable."""
    flat = []
    for path, leaf in nnx.to_flat_state(state):
        if path[0] != "layers":
            flat.append((path, leaf))
            continue
        stacked = leaf[...]
        for i in range(stacked.shape[0]):
            flat.append((("layers", i, *path[1:]), leaf.replace(stacked[i])))
    return nnx.from_flat_state(flat)


def stack_state(state: nnx.State) -> nnx.State:
    """Return the state of a stacked model for the state of an unrolled one; pure, so jittable."""
    flat, stacks = [], {}
    for path, leaf in nnx.to_flat_state(state):
        if path[0] == "layers":
            stacks.setdefault(path[2:], {})[path[1]] = leaf
        else:
            flat.append((path, leaf))
    for path, leaves in stacks.items():
        stacked = jnp.stack([leaves[i][...] for i in range(len(leaves))])
        flat.append((("layers", *path), leaves[0].replace(stacked)))
    return nnx.from_flat_state(flat)


def _layer_state(stacked: Any, index: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], stacked)


def _with_layers(
    model: decoder_lib.Decoder, layers: Any, *, scan_layers: bool
) -> decoder_lib.Decoder:
    copy = nnx.merge(*nnx.split(model))  # shares the arrays, not the module
    copy.layers = layers
    config = dataclasses.replace(model.config, scan_layers=scan_layers)
    for _, module in nnx.iter_modules(copy):
        if isinstance(module, decoder_lib.Decoder | decoder_lib.layer_lib.Attention):
            module.config = config
    return copy
