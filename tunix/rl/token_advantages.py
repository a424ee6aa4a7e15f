"""Advantages that differ from token to token, as pure functions of padded rows.

Axes: ``S`` completions, one per row whatever the model's rows were (packed or not), ``C``
tokens. ``mask`` is True where the policy sampled a token; other places (padding behind a
completion, tool output inside it) are stepped over and come out as 0. Works on JAX arrays;
NumPy arrays are taken, too.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

Rows = Float[Array | np.ndarray, "S C"]
Mask = Bool[Array | np.ndarray, "S C"]


def token_rewards(
    scores: Float[Array | np.ndarray, " S"], penalties: Rows, mask: Mask
) -> Float[Array, "S C"]:
    """Return the reward of every token: minus its penalty, and the score at the last token.

    Args:
        scores: Reward of each completion; any float, never rounded.
        penalties: What each token costs, e.g. ``beta`` times its KL.
        mask: True where the policy sampled a token.
    """
    lengths = mask.shape[1] - 1 - jnp.argmax(jnp.asarray(mask)[:, ::-1], axis=1)
    is_last = (jnp.arange(mask.shape[1]) == lengths[:, None]) & mask
    rewards = jnp.where(is_last, jnp.asarray(scores, jnp.float32)[:, None], 0.0)
    return rewards - jnp.where(mask, penalties, 0.0)


def returns_to_go(rewards: Rows, mask: Mask, *, gamma: float = 1.0) -> Float[Array, "S C"]:
    """Return the discounted sum of the rewards from each token on.

    The advantage of REINFORCE++ before whitening (Hu et al., 2025, arXiv:2501.03262).
    """
    zeros = jnp.zeros(rewards.shape, jnp.float32)
    return gae(rewards, zeros, mask, gamma=gamma, gae_lambda=1.0)[0]


def gae(
    rewards: Rows, values: Rows, mask: Mask, *, gamma: float, gae_lambda: float
) -> tuple[Float[Array, "S C"], Float[Array, "S C"]]:
    """Return generalised advantage estimates and the returns a critic should predict.

    ``A_t = sum_l (gamma * lambda)^l delta_{t+l}`` with ``delta_t = r_t + gamma * V_{t+1} - V_t``
    (Schulman et al., 2015, arXiv:1506.02438, eqs. 12 and 16); the value behind the last token is
    0. Returns are ``A + V``. Tokens outside the mask take no time: the one before them
    continues with the one behind.

    Args:
        rewards: Reward of each token.
        values: Value of the state in which each token was chosen.
        mask: True where the policy sampled a token; the rest may hold anything, even NaN.
        gamma: Discount per token.
        gae_lambda: 0 trusts the next value, 1 the rewards alone.
    """
    rewards, values = jnp.asarray(rewards, jnp.float32), jnp.asarray(values, jnp.float32)

    def step(later, now):
        next_advantage, next_value = later
        reward, value, held = now
        delta = reward + gamma * next_value - value
        advantage = delta + gamma * gae_lambda * next_advantage
        carry = (jnp.where(held, advantage, next_advantage), jnp.where(held, value, next_value))
        return carry, jnp.where(held, advantage, 0.0)

    zeros = jnp.zeros(rewards.shape[0], jnp.float32)
    columns = (rewards.T, values.T, jnp.asarray(mask).T)
    _, advantages = jax.lax.scan(step, (zeros, zeros), columns, reverse=True)
    return advantages.T, jnp.where(mask, advantages.T + values, 0.0)


def whiten(
    x: Rows, mask: Mask, *, keep_mean: bool = False, eps: float = 1e-8
) -> Float[Array, "S C"]:
    """Return ``x`` with mean 0 and deviation 1 over all tokens of the mask, 0 elsewhere.

    Of a whole rollout, before it is split: the same for every mini- and micro-batch. All 0
    where the values are all equal. (REINFORCE++, arXiv:2501.03262; PPO implementations.)

    Args:
        x: A value per token; outside the mask it may hold anything, even NaN.
        mask: Which tokens count.
        keep_mean: Whether the mean is added again: then it stays, and equal values stay what
            they are (``whiten(shift_mean=False)`` of Ziegler et al., 2019, arXiv:1909.08593;
            Huang et al., 2024, arXiv:2403.17031).
        eps: Added to the deviation.
    """
    count = jnp.maximum(jnp.sum(mask), 1)
    x = jnp.where(mask, x, 0.0)
    mean = x.sum() / count
    # Equal values must give exactly 0, whatever rounding does to their mean.
    smallest, largest = jnp.where(mask, x, jnp.inf).min(), jnp.where(mask, x, -jnp.inf).max()
    centered = jnp.where(mask & (largest > smallest), x - mean, 0.0)
    whitened = centered / (jnp.sqrt(jnp.square(centered).sum() / count) + eps)
    return x - centered + whitened if keep_mean else whitened


TokenAdvantageFn = Callable[..., tuple[Float[Array, "S C"], Float[Array, "S C"]]]
"""``fn(rewards, values, mask, *, gamma, gae_lambda) -> (advantages, returns)``, all ``[S, C]``."""

TOKEN_ADVANTAGE_ESTIMATORS: Mapping[str, TokenAdvantageFn] = {"gae": gae}
