"""Which token gets which advantage, where that is not simply its completion's.

Pure functions from groups to groups. What is said of tokens is one array per trajectory, in the
order of the groups, on the host. Axis: ``N`` trained tokens of one trajectory.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from tunix.rl import trajectory
from tunix.rl.objectives import advantages as advantages_lib
from tunix.rl.objectives import token_advantages

Groups = list[trajectory.Group]
PerToken = Sequence[Float[np.ndarray, " N"]]


def members_of(groups: Sequence[trajectory.Group]) -> list[trajectory.Trajectory]:
    """Return all trajectories, prompt-major."""
    return [member for group in groups for member in group.trajectories]


def rewritten(
    groups: Sequence[trajectory.Group],
    rewrite: Callable[..., trajectory.Trajectory],
    *known: Sequence[Any],
) -> Groups:
    """Return the groups with ``rewrite(trajectory, *known of it)`` in place of each trajectory."""
    made = map(rewrite, members_of(groups), *known)
    return [
        dataclasses.replace(group, trajectories=[next(made) for _ in group.trajectories])
        for group in groups
    ]


def charge_rewards(
    groups: Sequence[trajectory.Group],
    penalties: PerToken,
    advantage_fn: advantages_lib.AdvantageFn,
) -> Groups:
    """Return the groups with advantages of rewards from which the penalties are subtracted.

    Each completion pays for all its tokens (RLOO: arXiv:2402.14740, eq. 2). The logged reward
    stays what the reward functions gave.

    Raises:
        ValueError: If the groups differ in size, which estimators compare rewards by.
    """
    sizes = {len(group.trajectories) for group in groups}
    if len(sizes) > 1:
        raise ValueError(
            f"advantages are estimated from groups of one size, got {sorted(sizes)} trajectories; "
            "charge the KL in the loss or to tokens"
        )
    members, shape = members_of(groups), (len(groups), *sizes)
    rewards = [one.total_reward - own.sum() for one, own in zip(members, penalties, strict=True)]
    found = advantages_lib.estimate(
        advantage_fn,
        np.reshape(rewards, shape),
        lengths=np.reshape([float(one.num_trained) for one in members], shape),
    )
    return rewritten(
        groups, lambda one, own: dataclasses.replace(one, advantage=own), found.ravel().tolist()
    )


def charge_tokens(groups: Sequence[trajectory.Group], penalties: PerToken) -> Groups:
    """Return the groups with each token's advantage less the penalties from it on.

    A token does not pay for those before it (REINFORCE++: arXiv:2501.03262).
    """
    to_go = [
        token_advantages.returns_to_go(token_advantages.token_rewards(one.advantage, own))
        for one, own in zip(members_of(groups), penalties, strict=True)
    ]
    return with_token_advantages(groups, to_go)


def whitened(groups: Sequence[trajectory.Group], *, mask_truncated: bool) -> Groups:
    """Return the groups with advantages of mean 0 and deviation 1 over all tokens that count."""
    values = [one.advantage_of_tokens for one in members_of(groups)]
    return with_token_advantages(groups, whiten(groups, values, mask_truncated=mask_truncated))


def whiten(
    groups: Sequence[trajectory.Group],
    values: PerToken,
    *,
    mask_truncated: bool,
    keep_mean: bool = False,
) -> list[Float[np.ndarray, " N"]]:
    """Return values whitened over all tokens that count; 0 of those that do not.

    Args:
        groups: Trajectories.
        values: Something of each of their tokens.
        mask_truncated: Whether trajectories that were cut off do not count.
        keep_mean: See :func:`tunix.rl.objectives.token_advantages.whiten`.
    """
    counts = [one.trained_length(mask_truncated=mask_truncated) for one in members_of(groups)]
    kept = [own[:count] for own, count in zip(values, counts, strict=True)]
    found = token_advantages.whiten(np.concatenate(kept), keep_mean=keep_mean)
    parts = np.split(found, np.cumsum(counts)[:-1])
    return [
        np.pad(part, (0, len(own) - len(part))) for part, own in zip(parts, values, strict=True)
    ]


def with_token_advantages(groups: Sequence[trajectory.Group], values: PerToken) -> Groups:
    """Return the groups with these advantages of tokens.

    The advantage of a completion without tokens, which an engine may return, is 0.
    """

    def rewrite(one: trajectory.Trajectory, own: np.ndarray) -> trajectory.Trajectory:
        mean = float(own.mean()) if len(own) else 0.0
        return dataclasses.replace(one, token_advantages=own, advantage=mean)

    return rewritten(groups, rewrite, values)


def with_values(groups: Sequence[trajectory.Group], values: PerToken, returns: PerToken) -> Groups:
    """Return the groups with what the critic thinks of their tokens, and should think."""
    return rewritten(
        groups,
        lambda one, own, to_learn: dataclasses.replace(one, values=own, returns=to_learn),
        values,
        returns,
    )
