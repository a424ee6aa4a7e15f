"""Models with random weights: for tests, benchmarks and dry runs without a checkpoint."""

import dataclasses
import re
import zlib
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from tunix.models import weights
from tunix.models.transformer import config as config_lib
from tunix.models.transformer import decoder, sharding

ModelT = TypeVar("ModelT", bound=decoder.Decoder)


def create_dummy_model(
    model_class: Callable[..., ModelT],
    config: config_lib.TransformerConfig,
    mesh: Mesh | None = None,
    dtype: DTypeLike | None = None,
    random_seed: int = 0,
    scale: float = 0.02,
) -> ModelT:
    """Return a model whose matrices are normal with standard deviation ``scale``.

    Norm scales and biases keep the values a new model has. A weight depends on the seed, its
    name and its layer only: stacked and unrolled layers, any mesh and any other weight
    leave it as it is.

    Args:
        model_class: Class of the model, e.g. ``Llama3``.
        config: Its architecture.
        mesh: Where to put the parameters; each is drawn in place. One device without it.
        dtype: Storage dtype, instead of ``config.param_dtype``.
        random_seed: Seed of all draws.
        scale: Standard deviation of every matrix.
    """
    if dtype is not None:
        config = dataclasses.replace(config, param_dtype=jnp.dtype(dtype).name)

    def initial() -> nnx.State:
        return nnx.state(model_class(config, rngs=nnx.Rngs(0)))

    abstract = nnx.eval_shape(lambda: model_class(config, rngs=nnx.Rngs(0)))
    key = jax.random.key(random_seed)

    def draw() -> nnx.State:
        drawn = []
        for path, leaf in nnx.to_flat_state(initial()):
            name = weights.dotted(path)
            if name.endswith(".w"):
                value = scale * _normal(key, name, leaf.shape)
                leaf = leaf.replace(value.astype(leaf.dtype))
            drawn.append((path, leaf))
        return nnx.from_flat_state(drawn)

    places: Any = None
    if mesh is not None:
        places = sharding.state_shardings(nnx.state(abstract), mesh)
    return nnx.merge(nnx.graphdef(abstract), jax.jit(draw, out_shardings=places)())


def _normal(key: jax.Array, name: str, shape: tuple[int, ...]) -> jax.Array:
    """Return standard normal numbers that depend on the name without its layer, and the layer."""
    common = re.sub(r"^layers\.\d+\.", "layers.", name)
    key = jax.random.fold_in(key, zlib.crc32(common.encode()))
    if not common.startswith("layers."):
        return jax.random.normal(key, shape, jnp.float32)
    if common != name:
        layer = int(name.split(".")[1])
        return jax.random.normal(jax.random.fold_in(key, layer), shape, jnp.float32)
    layers = jnp.arange(shape[0])
    one = lambda i: jax.random.normal(jax.random.fold_in(key, i), shape[1:], jnp.float32)  # noqa: E731
    return jax.vmap(one)(layers)
