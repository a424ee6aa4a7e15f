"""RMSNorm and its gradients against torch."""

import jax
import jax.numpy as jnp
import numpy as np
import torch

from tunix.ops import norm


def test_value_and_gradients_match_torch():
    rng = np.random.default_rng(0)
    x, scale, g = rng.normal(size=(2, 5, 16)), rng.normal(size=16), rng.normal(size=(2, 5, 16))
    tx = torch.tensor(x, dtype=torch.float32, requires_grad=True)
    ts = torch.tensor(scale, dtype=torch.float32, requires_grad=True)
    ty = torch.nn.functional.rms_norm(tx, (16,), ts, eps=1e-5)
    ty.backward(torch.tensor(g, dtype=torch.float32))

    def normed(x, scale):
        return norm.rms_norm(x, scale, eps=1e-5)

    y, pull = jax.vjp(normed, jnp.asarray(x, jnp.float32), jnp.asarray(scale, jnp.float32))
    dx, dscale = pull(jnp.asarray(g, jnp.float32))
    np.testing.assert_allclose(y, ty.detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(dx, tx.grad.numpy(), atol=2e-6)
    np.testing.assert_allclose(dscale, ts.grad.numpy(), atol=5e-6)
