"""Advantages as pure functions of rewards.

Nothing here knows where a reward came from or what the advantage is used for.
Every function works on NumPy and on JAX arrays alike. Axes: ``P`` prompts,
``G`` completions sampled per prompt. One advantage per completion; those that differ
from token to token are in :mod:`tunix.rl.objectives.token_advantages`.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jax import Array
from jaxtyping import Float


def group_relative(
    rewards: Float[Array | np.ndarray, "P G"], *, normalize: bool = True, eps: float = 1e-4
) -> Float[Array | np.ndarray, "P G"]:
    """Return each reward minus its prompt's mean, in units of the group's standard deviation.

    The standard deviation is that of a sample (``ddof=1``). A group whose
    rewards are all equal, such as a group of one, has advantages of exactly zero,
    whatever rounding does to its mean. (GRPO: Shao et al., 2024, arXiv:2402.03300,
    section 4.1.2.)

    Args:
        rewards: One reward per completion.
        normalize: Whether to divide by the standard deviation. Without it this is
            the estimator of Dr. GRPO (Liu et al., 2025, arXiv:2503.20783), which
            does not weigh a prompt more because its rewards happen to be close.
        eps: Added to the standard deviation.
    """
    centered = (rewards - rewards.mean(axis=1, keepdims=True)) * _differ(rewards)
    if not normalize or rewards.shape[1] == 1:  # one reward has no sample deviation
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

    An unbiased baseline (RLOO: Ahmadian et al., 2024, arXiv:2402.14740, section 3).

    Raises:
        ValueError: If there are no others.
    """
    if rewards.shape[1] < 2:
        raise ValueError("leave-one-out needs at least 2 completions per prompt, got 1")
    others = rewards.shape[1] - 1
    baseline = (rewards.sum(axis=1, keepdims=True) - rewards) / others
    return (rewards - baseline) * _differ(rewards)


def length_weighted(
    rewards: Float[Array | np.ndarray, "P G"], *, lengths: Float[Array | np.ndarray, "P G"]
) -> Float[Array | np.ndarray, "P G"]:
    """Return each reward minus its prompt's mean weighted by length.

    The baseline of least variance if a completion's squared gradient norm grows with its
    length (OPO: Hao et al., 2025, arXiv:2505.23585).

    Args:
        rewards: One reward per completion.
        lengths: Tokens of each completion; positive.
    """
    baseline = (lengths * rewards).sum(axis=1, keepdims=True) / lengths.sum(axis=1, keepdims=True)
    return (rewards - baseline) * _differ(rewards)


def batch_whitened(
    rewards: Float[Array | np.ndarray, "P G"], *, eps: float = 1e-8
) -> Float[Array | np.ndarray, "P G"]:
    """Return each reward minus the mean of the whole batch, in units of the batch's deviation.

    No prompt is compared with itself, so one completion of each is enough (REINFORCE++: Hu et
    al., 2025, arXiv:2501.03262). Every completion counts alike;
    :func:`tunix.rl.objectives.token_advantages.whiten` counts tokens.
    """
    return _whitened(rewards, eps)


def group_centered_batch_whitened(
    rewards: Float[Array | np.ndarray, "P G"], *, eps: float = 1e-8
) -> Float[Array | np.ndarray, "P G"]:
    """Return :func:`group_centered` rewards in units of their deviation over the batch.

    REINFORCE++ with the group's mean as baseline (arXiv:2501.03262, "REINFORCE++-baseline").
    The groups' means are 0, so nothing more is subtracted, and a group of equal rewards stays 0.
    """
    centered = group_relative(rewards, normalize=False)
    return centered / (centered.std() + eps)


def unchanged(
    rewards: Float[Array | np.ndarray, "P G"],
) -> Float[Array | np.ndarray, "P G"]:
    """Return the rewards themselves: no baseline (REINFORCE)."""
    return rewards


def _whitened(values, eps):
    """Return the values with mean 0 and deviation 1; exactly 0 where they are all equal."""
    differ = values.max() != values.min()
    return (values - values.mean()) / (values.std() + eps) * differ


def _differ(rewards):
    """Return ``[P, 1]``: whether the rewards of a group differ at all."""
    return rewards.max(axis=1, keepdims=True) != rewards.min(axis=1, keepdims=True)


AdvantageFn = Callable[..., Float[Array | np.ndarray, "P G"]]
"""``fn(rewards [P, G]) -> advantages [P, G]``; one that names ``lengths`` gets those, too."""

ADVANTAGE_ESTIMATORS: Mapping[str, AdvantageFn] = {
    "grpo": group_relative,
    "drgrpo": group_centered,
    "rloo": leave_one_out,
    "opo": length_weighted,
    "reinforce++": batch_whitened,
    "reinforce++-baseline": group_centered_batch_whitened,
    "none": unchanged,
}


def wants_lengths(fn: Callable[..., Any]) -> bool:
    """Return whether an estimator reads the lengths of the completions, by naming them."""
    try:
        return "lengths" in inspect.signature(fn).parameters
    except (TypeError, ValueError):  # of some functions written in C
        return False


def estimate(
    fn: AdvantageFn,
    rewards: Float[np.ndarray, "P G"],
    *,
    lengths: Float[np.ndarray, "P G"],
) -> Float[np.ndarray, "P G"]:
    """Return the advantages of ``fn``, which gets the lengths if it names them.

    Raises:
        ValueError: If they are not one finite number per completion.
    """
    values = np.asarray(fn(rewards, lengths=lengths) if wants_lengths(fn) else fn(rewards))
    if values.shape != rewards.shape:
        raise ValueError(
            f"the advantage estimator returned shape {values.shape} for rewards of shape "
            f"{rewards.shape} (prompts, completions of each)"
        )
    if not np.isfinite(values).all():
        raise ValueError(
            f"the advantage estimator returned a value that is not finite for the rewards of "
            f"prompt {int(np.argwhere(~np.isfinite(values))[0][0])}"
        )
    return values
