"""How far training has moved the policy on each completion."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from tunix.rl import trajectory


def with_log_ratios(
    groups: Sequence[trajectory.Group], logps: Float[np.ndarray, "S C"]
) -> list[trajectory.Group]:
    """Return the groups whose completions, if not empty, know their mean log-ratio per token.

    Args:
        groups: ``S`` completions in all.
        logps: Log-probabilities of their tokens under the policy as it is now.
    """
    rows = iter(np.asarray(logps, np.float64))
    return [
        dataclasses.replace(
            group,
            trajectories=[
                dataclasses.replace(one, log_ratio=_mean_log_ratio(one, next(rows)))
                for one in group.trajectories
            ],
        )
        for group in groups
    ]


def _mean_log_ratio(one: trajectory.Trajectory, logps: Float[np.ndarray, " C"]) -> float | None:
    if not one.num_trained:
        return None
    return float(np.mean(logps[: one.num_trained] - one.trained_logps))
