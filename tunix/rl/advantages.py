"""Advantages as pure functions of rewards.

Nothing here knows where a reward came from or what the advantage is used for.
Every function works on NumPy and on JAX arrays alike. Axes: ``P`` prompts,
``G`` completions sampled per prompt.
"""

from collections.abc import Callable, Mapping

import numpy as np
from jax import Array
from jaxtyping import Float


def group_relative(
    rewards: Float[Array | np.ndarray, "P G"], *, normalize: bool = True, eps: float = 1e-4
) -> Float[Array | np.ndarray, "P G"]:
    """Return each reward minus its prompt's mean, in units of the group's standard deviation.

    The standard deviation is that of a sample (``ddof=1``). A group whose
    rewards are all equal has advantages of exactly zero, whatever rounding does
    to its mean. (GRPO: Shao et al., 2024, arXiv:2402.03300, section 4.1.2.)

    Args:
        rewards: One reward per completion.
        normalize: Whether to divide by the standard deviation. Without it this is
            the estimator of Dr. GRPO (Liu et al., 2025, arXiv:2503.20783), which
            does not weigh a prompt more because its rewards happen to be close.
        eps: Added to the standard deviation.
    """
    centered = (rewards - rewards.mean(axis=1, keepdims=True)) * _differ(rewards)
    if not normalize:
        return centered
    return centered / (rewards.std(axis=1, ddof=1, keepdims=True) + eps)


def group_centered(
    rewards: Float[Array | np.ndarray, "P G"],
) -> Float[Array | np.ndarray, "P G"]:
    """Return each reward minus its prompt's mean (Dr. GRPO, arXiv:2503.20783)."""
    return group_relative(rewards, normalize=False)


def leave_one_out(
    rewards: Float[Array | np.ndarray, "P G"],
) -> Float[Array | np.ndarray, "P G"]:
    """Return each reward minus the mean of the *other* rewards for its prompt.

    An unbiased baseline (RLOO: Ahmadian et al., 2024, arXiv:2402.14740).
    """
    others = rewards.shape[1] - 1
    baseline = (rewards.sum(axis=1, keepdims=True) - rewards) / others
    return (rewards - baseline) * _differ(rewards)


def _differ(rewards):
    """Return ``[P, 1]``: whether the rewards of a group differ at all."""
    return rewards.max(axis=1, keepdims=True) != rewards.min(axis=1, keepdims=True)


AdvantageFn = Callable[..., Float[Array | np.ndarray, "P G"]]
"""``fn(rewards [P, G]) -> advantages [P, G]``."""

ADVANTAGE_ESTIMATORS: Mapping[str, AdvantageFn] = {
    "grpo": group_relative,
    "drgrpo": group_centered,
    "rloo": leave_one_out,
}
