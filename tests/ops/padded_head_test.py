"""The fused head where the last tokens are padding, against the plain computation without them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.ops import linear_logprob_test as plain_head
from tunix.ops import linear_logprob, vocab_tiles

N = plain_head.N


@pytest.fixture(name="inputs")
def _inputs():
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(N, plain_head.D)), jnp.float32)
    head = jnp.asarray(rng.normal(size=plain_head.HEAD_SHAPE), jnp.float32)
    targets = jnp.asarray(rng.integers(0, plain_head.V, N), jnp.int32)
    return hidden, head, targets, jnp.asarray(rng.uniform(size=N), jnp.float32)


def padded_losses(inputs, head_needs_grad, **options):
    """Value and gradients of both heads, compiled once for any number of valid tokens."""
    targets = inputs[2]

    def losses(hidden, head, weights, num_valid):
        common = {"num_valid": num_valid, "head_needs_grad": head_needs_grad, "chunk_size": 8}
        logps, entropy = linear_logprob.linear_logprob(
            hidden, head, targets, with_entropy=True, precision="exact", **common
        )
        total, detached = linear_logprob.linear_cross_entropy(
            hidden, head, targets, weights, precision="exact", **common, **options
        )
        return total + jnp.sin(logps).sum() + (entropy**2).sum(), (logps, entropy, detached)

    return jax.jit(jax.value_and_grad(losses, (0, 1, 2), has_aux=True))


@pytest.mark.parametrize(
    ("head_needs_grad", "options"),
    [
        pytest.param(True, {}, id="computed again"),
        pytest.param(True, {"label_smoothing": 0.1, "z_loss": 0.01}, id="formed on the way"),
        pytest.param(False, {}, id="frozen head"),
    ],
)
def test_tokens_after_the_valid_ones_are_as_if_they_were_not_there(
    inputs, head_needs_grad, options, monkeypatch
):
    monkeypatch.setattr(vocab_tiles, "CPU_BLOCK", 32)  # four blocks, the last one padded
    hidden, head, targets, weights = inputs
    ours = padded_losses(inputs, head_needs_grad, **options)
    for count in (0, 1, 8, 20, N):
        real = np.arange(N) < count
        poisoned = jnp.where(real[:, None], hidden, jnp.nan)
        (value, per_token), (d_hidden, d_head, d_weights) = ours(
            poisoned, head, jnp.where(real, weights, jnp.nan), jnp.int32(count)
        )

        def plain(hidden, head, weights, count=count):
            rows, wanted = hidden[:count], targets[:count]
            logps, entropy = plain_head.naive_logprob(rows, head, wanted)
            total = plain_head.naive_cross_entropy(
                rows,
                head,
                wanted,
                weights[:count],
                None,
                options.get("label_smoothing", 0.0),
                options.get("z_loss", 0.0),
            )
            return total + jnp.sin(logps).sum() + (entropy**2).sum(), (logps, entropy, logps)

        (expected, expected_tokens), grads = jax.value_and_grad(plain, (0, 1, 2), has_aux=True)(
            hidden, head, weights
        )
        np.testing.assert_allclose(value, expected, rtol=5e-6, atol=1e-5)
        for found, wanted in zip(per_token, expected_tokens, strict=True):
            np.testing.assert_allclose(found[:count], wanted, atol=5e-6)
            np.testing.assert_array_equal(found[count:], 0.0)
        np.testing.assert_allclose(d_hidden, grads[0], atol=2e-5)
        np.testing.assert_allclose(d_weights, grads[2], atol=2e-5)
        np.testing.assert_array_equal(d_hidden[count:], 0.0)
        np.testing.assert_allclose(d_head, grads[1] if head_needs_grad else 0.0, atol=2e-5)
