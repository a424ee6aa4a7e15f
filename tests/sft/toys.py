"""Tiny models and batches for the trainer's tests."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tunix.models.transformer import config as config_lib
from tunix.models.transformer import decoder
from tunix.sft import loss_output

VOCAB = 32


class Linear(nnx.Module):
    """``y = w x + b`` with four weights: the whole trainer in a model that compiles at once."""

    def __init__(self, *, rngs):
        self.w = nnx.Param(jax.random.normal(rngs.params(), (4,)))
        self.b = nnx.Param(jnp.zeros(()))

    def __call__(self, x):
        return x @ self.w[...] + self.b[...]


class Noisy(nnx.Module):
    """A linear model with dropout (a random stream) and batch statistics."""

    def __init__(self, *, rngs):
        self.linear = Linear(rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)

    def __call__(self, x):
        return self.linear(self.dropout(self.norm(x)))


def squared_error(model, x, y, weights):
    """Weighted squared error, as sums."""
    error = (model(x) - y) ** 2
    total = (error * weights).sum()
    return loss_output.LossOutput(
        loss_sum=total, weight_sum=weights.sum(), metrics={"mse": (total, weights.sum())}
    )


def regression(num_rows, *, seed=0):
    """Rows of a regression problem with unequal weights."""
    rng = np.random.default_rng(seed)
    return {
        "x": rng.normal(size=(num_rows, 4)).astype(np.float32),
        "y": rng.normal(size=(num_rows,)).astype(np.float32),
        "weights": rng.uniform(0.1, 3.0, size=(num_rows,)).astype(np.float32),
    }


def rows(batch, start, stop):
    """The rows ``start`` to ``stop`` of a batch."""
    return {name: value[start:stop] for name, value in batch.items()}


def tiny_config(**changes):
    settings = {
        "num_layers": 2,
        "vocab_size": VOCAB,
        "embed_dim": 16,
        "hidden_dim": 24,
        "num_heads": 2,
        "num_kv_heads": 1,
        "head_dim": 8,
        "rope_theta": 1e4,
        "norm_eps": 1e-5,
        "weight_tying": True,
        "precision": "exact",
    }
    return config_lib.TransformerConfig(**(settings | changes))


def tiny_decoder(*, seed=0, **changes):
    """A two-layer decoder with weights large enough that its predictions differ."""
    model = decoder.Decoder(tiny_config(**changes), rngs=nnx.Rngs(seed))
    state = nnx.state(model, nnx.Param)
    nnx.update(model, jax.tree.map(lambda x: x * (8.0 if x.ndim > 1 else 1.0), state))
    return model


class ForeignModel(nnx.Module):
    """The plain call contract of modules that are not ours, around one of ours."""

    def __init__(self, inner):
        self.inner = inner

    def __call__(self, tokens, positions, cache, attention_mask):
        return self.inner(tokens, positions, cache, attention_mask)


def token_batch(num_rows, length, *, seed=0):
    """Random tokens, about half of which have loss, with fractional weights."""
    rng = np.random.default_rng(seed)
    chosen = rng.random((num_rows, length)) < 0.5
    return {
        "input_tokens": rng.integers(0, VOCAB, (num_rows, length)).astype(np.int32),
        "input_mask": (chosen * rng.uniform(0.2, 2.0, chosen.shape)).astype(np.float32),
    }


def leaves(tree):
    """Host copies of all leaves, random keys as integers."""
    out = []
    for leaf in jax.tree.leaves(tree):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        out.append(np.array(leaf))
    return out


def assert_bit_identical(one, other):
    """Assert that two trees hold the same bits."""
    one, other = leaves(one), leaves(other)
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
