"""Which token gets which advantage, where that is not simply its completion's.

Pure functions from groups to groups. Arrays are ``[S, C]``: one row per completion in the
order of the groups, on the host.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float

from tunix.rl import advantages as advantages_lib
from tunix.rl import token_advantages, trajectory

Groups = list[trajectory.Group]


def members_of(groups: Sequence[trajectory.Group]) -> list[trajectory.Trajectory]:
    """Return all completions, prompt-major."""
    return [member for group in groups for member in group.trajectories]


def padded(values: Sequence[np.ndarray], width: int) -> Float[np.ndarray, "S C"]:
    """Return ragged values as rows of ``width``, with zeros behind."""
    rows = np.zeros((len(values), width), np.float32)
    for row, value in zip(rows, values, strict=True):
        row[: len(value)] = value
    return rows


def sampled_mask(groups: Sequence[trajectory.Group], width: int) -> Bool[np.ndarray, "S C"]:
    """Return where a token was sampled."""
    lengths = np.asarray([member.num_trained for member in members_of(groups)])
    return np.arange(width) < lengths[:, None]


def trained_mask(
    groups: Sequence[trajectory.Group], width: int, *, mask_truncated: bool
) -> Bool[np.ndarray, "S C"]:
    """Return where a token was sampled and the loss counts it."""
    members = members_of(groups)
    lengths = [member.trained_length(mask_truncated=mask_truncated) for member in members]
    return np.arange(width) < np.asarray(lengths)[:, None]


def charge_rewards(
    groups: Sequence[trajectory.Group],
    penalties: Float[np.ndarray, "S C"],
    advantage_fn: advantages_lib.AdvantageFn,
) -> Groups:
    """Return the groups with advantages of rewards from which the penalties are subtracted.

    Each completion pays for all its tokens (RLOO: arXiv:2402.14740, eq. 2). The logged reward
    stays what the reward functions gave.
    """
    num_samples = len(groups[0].trajectories)
    members = members_of(groups)
    rewards = np.asarray([member.total_reward for member in members]) - penalties.sum(axis=1)
    lengths = np.asarray([float(member.num_trained) for member in members])
    found = advantages_lib.estimate(
        advantage_fn,
        rewards.reshape(-1, num_samples),
        lengths=lengths.reshape(-1, num_samples),
    ).reshape(-1)
    return _rewritten(groups, lambda i, one: dataclasses.replace(one, advantage=float(found[i])))


def charge_tokens(
    groups: Sequence[trajectory.Group], penalties: Float[np.ndarray, "S C"]
) -> Groups:
    """Return the groups with each token's advantage less the penalties from it on.

    A token does not pay for those before it (REINFORCE++: arXiv:2501.03262).
    """
    mask = sampled_mask(groups, penalties.shape[1])
    scores = np.asarray([member.advantage for member in members_of(groups)], np.float32)
    rewards = token_advantages.token_rewards(scores, penalties, mask)
    return with_token_advantages(groups, np.asarray(token_advantages.returns_to_go(rewards, mask)))


def whitened(groups: Sequence[trajectory.Group], width: int, *, mask_truncated: bool) -> Groups:
    """Return the groups with advantages of mean 0 and deviation 1 over all trained tokens."""
    mask = trained_mask(groups, width, mask_truncated=mask_truncated)
    values = padded([member.advantage_of_tokens for member in members_of(groups)], width)
    return with_token_advantages(groups, np.asarray(token_advantages.whiten(values, mask)))


def with_token_advantages(
    groups: Sequence[trajectory.Group], values: Float[np.ndarray, "S C"]
) -> Groups:
    """Return the groups with these advantages of tokens; what lies behind a completion is cut.

    The advantage of a completion without tokens, which an engine may return, is 0.
    """

    def rewrite(i: int, one: trajectory.Trajectory) -> trajectory.Trajectory:
        own = values[i, : one.num_trained]
        mean = float(own.mean()) if len(own) else 0.0
        return dataclasses.replace(one, token_advantages=own, advantage=mean)

    return _rewritten(groups, rewrite)


def with_values(
    groups: Sequence[trajectory.Group],
    values: Float[np.ndarray, "S C"],
    returns: Float[np.ndarray, "S C"],
) -> Groups:
    """Return the groups with what the critic thinks of their tokens, and should think."""

    def rewrite(i: int, one: trajectory.Trajectory) -> trajectory.Trajectory:
        length = one.num_trained
        return dataclasses.replace(one, values=values[i, :length], returns=returns[i, :length])

    return _rewritten(groups, rewrite)


def _rewritten(
    groups: Sequence[trajectory.Group],
    rewrite: Callable[[int, trajectory.Trajectory], trajectory.Trajectory],
) -> Groups:
    """Return the groups with every completion replaced, counted from 0."""
    numbers = iter(range(len(members_of(groups))))
    return [
        dataclasses.replace(
            group, trajectories=[rewrite(next(numbers), one) for one in group.trajectories]
        )
        for group in groups
    ]
