"""Models with random weights: for tests, benchmarks and dry runs without a checkpoint."""

import dataclasses
import re
import zlib
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from tunix.models import weights
from tunix.models.transformer import config as config_lib
from tunix.models.transformer import decoder

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
    name and its layer only: stacked or unrolled layers, a mesh, and all other weights leave
    it as it is. Numpy draws: JAX would compile first and take three times as long on a CPU.

    Args:
        model_class: Class of the model, e.g. ``Llama3``.
        config: Its architecture.
        mesh: Where to put the parameters; one device without it.
        dtype: Storage dtype, instead of ``config.param_dtype``.
        random_seed: Seed of all draws, not negative.
        scale: Standard deviation of every matrix.

    Raises:
        ShardingError: If the mesh does not divide a parameter.
    """
    if dtype is not None:
        config = dataclasses.replace(config, param_dtype=jnp.dtype(dtype).name)
    graphdef, state = nnx.split(nnx.eval_shape(lambda: model_class(config, rngs=nnx.Rngs(0))))
    places = weights.places(state, mesh)
    variables = [(path, weights.dotted(path), leaf) for path, leaf in nnx.to_flat_state(state)]

    @jax.jit
    def initial() -> dict[str, jax.Array]:
        """Only what is kept is computed: the compiler drops the initial matrices."""
        fresh = nnx.to_flat_state(nnx.state(model_class(config, rngs=nnx.Rngs(0))))
        named = {weights.dotted(path): leaf[...] for path, leaf in fresh}
        return {name: value for name, value in named.items() if not _is_matrix(name)}

    values = initial()
    for _, name, leaf in variables:
        if _is_matrix(name):
            drawn = _normal(random_seed, name, leaf.shape, scale)
            values[name] = drawn.astype(leaf.dtype, copy=False)
    placed = [
        (path, leaf.replace(jax.device_put(values.pop(name), places[name])))
        for path, name, leaf in variables
    ]
    return nnx.merge(graphdef, nnx.from_flat_state(placed))


def _is_matrix(name: str) -> bool:
    return name.endswith(".w")


def _normal(seed: int, name: str, shape: tuple[int, ...], scale: float) -> np.ndarray:
    """Return normal numbers that depend on the layer and on the name without it."""
    common = re.sub(r"^layers\.\d+\.", "layers.", name)
    entropy = (seed, zlib.crc32(common.encode()))
    out = weights.aligned_empty(shape, np.dtype(np.float32))
    if common != name:
        parts = [(out, (*entropy, int(name.split(".")[1])))]
    elif common.startswith("layers."):
        parts = [(out[i], (*entropy, i)) for i in range(shape[0])]
    else:
        parts = [(out, entropy)]
    for part, entropy in parts:
        np.random.default_rng(entropy).standard_normal(dtype=np.float32, out=part)
    out *= scale
    return out
