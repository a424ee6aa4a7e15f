"""What every reward manager is, and what it returns."""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardResult:
    """What every function said about every completion, and the weighted sum."""

    total: Float[np.ndarray, " B"]
    per_function: Mapping[str, Float[np.ndarray, " B"]]
    """Unweighted scores by function name, in the order the functions were given; NaN where a
    function does not apply."""
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Time each function took."""
    failed: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Completions whose score is ``on_error`` in place of the function's."""
    restarts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Processes that were started in place of others, of functions that run in some."""

    def scores_of(self, i: int) -> dict[str, float | None]:
        """Return the scores of one completion, ``None`` where a function does not apply."""
        return {
            name: None if np.isnan(values[i]) else float(values[i])
            for name, values in self.per_function.items()
        }

    @property
    def costs(self) -> dict[str, float]:
        """What running each function was like: seconds, share of failed samples, restarts."""
        return {
            **{f"reward_seconds/{name}": seconds for name, seconds in self.seconds.items()},
            **{f"reward_failed/{name}": n / len(self.total) for name, n in self.failed.items()},
            **{f"reward_restarts/{name}": float(n) for name, n in self.restarts.items()},
        }


class AbstractRewardManager(abc.ABC):
    """Says what completions are worth.

    Made by the learner as ``manager_class(reward_fns, reward_weights)``.
    """

    @abc.abstractmethod
    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        columns: Mapping[str, Sequence[Any]],
    ) -> RewardResult:
        """Return the reward of every completion.

        Args:
            prompts: Text of the prompt of every completion.
            completions: Text of every completion.
            columns: Columns of the data and of the rollout by name, one value per completion.
        """

    def check_columns(self, columns: Sequence[str]) -> None:
        """Raise before anything is sampled if a column is missing; here nothing is required."""
        del columns
