"""Advantages that differ from token to token, as pure functions of one trajectory, on the host.

Axis: ``N`` trained tokens, of all its turns one after the other: what somebody else wrote between
them takes no time. Sums are of double precision, results of single precision.
"""

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float

Tokens = Float[np.ndarray, " N"]


def token_rewards(score: float, penalties: Tokens) -> Tokens:
    """Return the reward of every token: minus its penalty, and the score at the last token.

    Args:
        score: Reward of the whole; any float, never rounded.
        penalties: What each token costs, e.g. ``beta`` times its KL.
    """
    rewards = -np.asarray(penalties, np.float32)
    rewards[-1:] += np.float32(score)
    return rewards


def returns_to_go(rewards: Tokens, *, gamma: float = 1.0) -> Tokens:
    """Return the discounted sum of the rewards from each token on.

    The advantage of REINFORCE++ before whitening (Hu et al., 2025, arXiv:2501.03262).
    """
    return gae(rewards, np.zeros_like(rewards), gamma=gamma, gae_lambda=1.0)[0]


def gae(
    rewards: Tokens, values: Tokens, *, gamma: float, gae_lambda: float
) -> tuple[Tokens, Tokens]:
    """Return generalised advantage estimates and the returns a critic should predict.

    ``A_t = sum_l (gamma * lambda)^l delta_{t+l}`` with ``delta_t = r_t + gamma * V_{t+1} - V_t``
    (Schulman et al., 2015, arXiv:1506.02438, eqs. 12 and 16); the value behind the last token is
    0. Returns are ``A + V``.

    Args:
        rewards: Reward of each token.
        values: Value of the state in which each token was chosen.
        gamma: Discount per token.
        gae_lambda: 0 trusts the next value, 1 the rewards alone.
    """
    values = np.asarray(values, np.float64)
    deltas = rewards + gamma * np.append(values[1:], 0.0) - values
    advantage, found = 0.0, []
    for delta in deltas[::-1].tolist():
        advantage = delta + gamma * gae_lambda * advantage
        found.append(advantage)
    advantages = np.asarray(found[::-1], np.float64)
    return advantages.astype(np.float32), (advantages + values).astype(np.float32)


def whiten(x: Tokens, *, keep_mean: bool = False, eps: float = 1e-8) -> Tokens:
    """Return ``x`` with mean 0 and deviation 1.

    Of a whole rollout, before it is split: the same for every mini- and micro-batch. All 0
    where the values are all equal. (REINFORCE++, arXiv:2501.03262; PPO implementations.)

    Args:
        x: A value of every token that counts, of all trajectories.
        keep_mean: Whether the mean is added again: then it stays, and equal values stay what
            they are (``whiten(shift_mean=False)`` of Ziegler et al., 2019, arXiv:1909.08593;
            Huang et al., 2024, arXiv:2403.17031).
        eps: Added to the deviation.
    """
    x = np.asarray(x, np.float64)
    # Equal values must give exactly 0, whatever rounding does to their mean.
    differ = len(x) > 0 and x.min() < x.max()
    centered = x - x.mean() if differ else np.zeros_like(x)
    whitened = centered / (np.sqrt(np.mean(np.square(centered))) + eps) if differ else centered
    return (x - centered + whitened if keep_mean else whitened).astype(np.float32)


TokenAdvantageFn = Callable[..., tuple[Tokens, Tokens]]
"""``fn(rewards, values, *, gamma, gae_lambda) -> (advantages, returns)``, all ``[N]``: of one
trajectory at a time."""

TOKEN_ADVANTAGE_ESTIMATORS: Mapping[str, TokenAdvantageFn] = {"gae": gae}
