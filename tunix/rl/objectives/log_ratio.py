"""How far training has moved the policy on each completion."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from tunix.rl import trajectory
from tunix.rl.objectives import credit


def with_log_ratios(
    groups: Sequence[trajectory.Group], logps: Sequence[Float[np.ndarray, " N"]]
) -> list[trajectory.Group]:
    """Return the groups whose completions, if not empty, know their mean log-ratio per token.

    Args:
        groups: Some trajectories in all.
        logps: Of each, the log-probabilities of its tokens under the policy as it is now.
    """
    return credit.rewritten(
        groups,
        lambda one, own: dataclasses.replace(one, log_ratio=_mean_log_ratio(one, own)),
        logps,
    )


def _mean_log_ratio(one: trajectory.Trajectory, logps: Float[np.ndarray, " N"]) -> float | None:
    if not one.num_trained:
        return None
    return float(np.mean(logps.astype(np.float64) - one.trained_logps))
