"""What a rollout hands to the learner: spans of tokens and what is known about them.

Tokens stay the ids that were sampled; text is decoded for reward functions and logs
only. Masks follow from lengths: every sampled token is trained, the stop token that
ended the completion among them.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trajectory:
    """One completion of one prompt, unpadded, on the host."""

    completion_ids: Int[np.ndarray, " T"]
    """Sampled tokens, with the stop token if the completion ended by itself."""
    sampler_logps: Float[np.ndarray, " T"]
    """Their log-probabilities under the policy at the sampling temperature."""
    finish_reason: Literal["stop", "length"]
    policy_version: int
    """Optimizer steps that the policy which drew the last token had taken."""
    token_versions: Int[np.ndarray, " T"] | None = None
    """The same for each token, where several policies drew them."""
    text: str = ""
    rewards: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    """Unweighted score of every reward function, ``None`` of those that do not apply."""
    reward: float = 0.0
    log_ratio: float | None = None
    """Mean over the tokens of what training has added to their log-probabilities, where known."""
    advantage: float = 0.0
    """Advantage of all tokens, or the mean of :attr:`token_advantages` where they differ."""
    token_advantages: Float[np.ndarray, " T"] | None = None
    values: Float[np.ndarray, " T"] | None = None
    """What the critic thinks of the state before each token."""
    returns: Float[np.ndarray, " T"] | None = None
    """What the critic should learn to think."""

    @property
    def advantage_of_tokens(self) -> Float[np.ndarray, " T"]:
        """The advantage of every token."""
        if self.token_advantages is not None:
            return self.token_advantages
        return np.full(len(self.completion_ids), self.advantage, np.float32)

    @property
    def version_of_tokens(self) -> Int[np.ndarray, " T"]:
        """Optimizer steps that the policy which drew each token had taken."""
        if self.token_versions is not None:
            return self.token_versions
        return np.full(len(self.completion_ids), self.policy_version)

    @property
    def is_dead(self) -> bool:
        """Whether no token has an advantage."""
        if self.token_advantages is None:
            return self.advantage == 0.0
        return not self.token_advantages.any()

    @property
    def truncated(self) -> bool:
        """Whether the completion was cut off before it ended by itself."""
        return self.finish_reason == "length"

    def trained_length(self, *, mask_truncated: bool) -> int:
        """Return how many tokens the loss counts."""
        return 0 if mask_truncated and self.truncated else len(self.completion_ids)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """All completions of one prompt."""

    prompt_ids: Int[np.ndarray, " P"]
    prompt: str
    trajectories: Sequence[Trajectory]
    prompt_key: int | str | None = None
    """What tells the prompt from others over the whole run, if the data says."""
    columns: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What else the data says of the prompt, e.g. the right answer."""

    @property
    def is_dead(self) -> bool:
        """Whether no completion is better than another, so that the group teaches nothing."""
        return all(t.is_dead for t in self.trajectories)
