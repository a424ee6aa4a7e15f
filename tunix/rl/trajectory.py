"""What a rollout hands to the learner: spans of tokens, who wrote them and what is known of them.

Tokens stay the ids that were sampled; text is decoded for reward functions and logs only. Masks
follow from spans: every token of a trained span is trained, a stop token that ended it among them.
Axes: ``T`` tokens of a span, ``N`` trained tokens of a trajectory, over all its spans in order.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

Author = Literal["prompt", "policy", "environment"]

_PER_TOKEN = ("token_rewards", "token_advantages", "old_logps", "ref_logps", "values", "returns")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Span:
    """Tokens that one author wrote at a stretch.

    Raises:
        ValueError: If something is known of another number of tokens, if a span that the policy
            did not write is to be trained, or nothing is known of one that it wrote.
    """

    token_ids: Int[np.ndarray, " T"]
    author: Author
    turn: int = 0
    """Counts what the policy wrote in answer to something, from 0."""
    logps: Float[np.ndarray, " T"] | None = None
    """Log-probabilities under the policy that drew each token, at the sampling temperature."""
    versions: Int[np.ndarray, " T"] | None = None
    """Optimizer steps that this policy had taken."""
    trained: bool = False
    """Whether the loss counts the tokens; of a policy's spans alone."""
    reward: float | None = None
    """What the turn earned, if it is judged by itself."""

    def __post_init__(self) -> None:
        if self.author == "policy" and (self.logps is None or self.versions is None):
            raise ValueError("a span of the policy needs the logps and versions of its tokens")
        if self.trained and self.author != "policy":
            raise ValueError(f"a span of the {self.author} cannot be trained, it was not sampled")
        for name in ("logps", "versions"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.token_ids):
                raise ValueError(f"{len(values)} {name} for {len(self.token_ids)} tokens")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trajectory:
    """A conversation of policy and environment, unpadded, on the host; it only ever grows.

    Raises:
        ValueError: If it does not begin with a prompt, or something is said of another number of
            tokens than are trained.
    """

    spans: tuple[Span, ...]
    """The prompt, then what was written in answer."""
    finish_reason: Literal["stop", "length"] | None = None
    """``None`` as long as it goes on."""
    text: str = ""
    rewards: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    """Unweighted score of every reward function, ``None`` of those that do not apply."""
    reward: float = 0.0
    """What the whole of it earned, beside what its turns and tokens did."""
    token_rewards: Float[np.ndarray, " N"] | None = None
    """What single tokens earned, if they are judged by themselves."""
    log_ratio: float | None = None
    """Mean over the tokens of what training has added to their log-probabilities, where known."""
    advantage: float = 0.0
    """Advantage of all tokens, or the mean of :attr:`token_advantages` where they differ."""
    token_advantages: Float[np.ndarray, " N"] | None = None
    old_logps: Float[np.ndarray, " N"] | None = None
    """Log-probabilities under the trainer's policy before an update, where they are not taken to
    be those of the sampler."""
    ref_logps: Float[np.ndarray, " N"] | None = None
    """Log-probabilities under the reference policy, where they are needed."""
    values: Float[np.ndarray, " N"] | None = None
    """What the critic thinks of the state before each token."""
    returns: Float[np.ndarray, " N"] | None = None
    """What the critic should learn to think."""

    def __post_init__(self) -> None:
        if not self.spans or self.spans[0].author != "prompt":
            raise ValueError("a trajectory begins with a prompt")
        for name in _PER_TOKEN:
            given = getattr(self, name)
            if given is not None and len(given) != self.num_trained:
                raise ValueError(f"{len(given)} {name} for {self.num_trained} trained tokens")

    @classmethod
    def of_completion(
        cls,
        prompt_ids: Int[np.ndarray, " P"],
        token_ids: Int[np.ndarray, " T"],
        logps: Float[np.ndarray, " T"],
        versions: Int[np.ndarray, " T"] | int,
        **known: Any,
    ) -> "Trajectory":
        """Return the trajectory of one completion of one prompt.

        Args:
            prompt_ids: The prompt.
            token_ids: What was sampled, with the stop token if it ended by itself.
            logps: See :class:`Span`.
            versions: Likewise; a number stands for all tokens.
            known: Further fields.
        """
        if isinstance(versions, int):
            versions = np.full(len(token_ids), versions, np.int32)
        sampled = Span(
            token_ids=token_ids, author="policy", logps=logps, versions=versions, trained=True
        )
        return cls(spans=(Span(token_ids=prompt_ids, author="prompt"), sampled), **known)

    def appended(self, span: Span) -> "Trajectory":
        """Return the trajectory with a further span."""
        return dataclasses.replace(self, spans=(*self.spans, span))

    def fork(self, num_spans: int) -> "Trajectory":
        """Return a sibling that has the first spans in common and goes on from there.

        What the policy wrote in them is trained here and not a second time there.
        """
        shared = self.spans[:num_spans]
        return Trajectory(spans=tuple(dataclasses.replace(s, trained=False) for s in shared))

    @property
    def prompt_ids(self) -> Int[np.ndarray, " P"]:
        """The tokens of the prompt."""
        return self.spans[0].token_ids

    @property
    def answer_ids(self) -> Int[np.ndarray, " A"]:
        """All tokens behind the prompt, whoever wrote them."""
        return _joined([span.token_ids for span in self.spans[1:]], np.int32)

    @property
    def is_trained(self) -> Bool[np.ndarray, " A"]:
        """Which of :attr:`answer_ids` are trained."""
        marks = [np.full(len(span.token_ids), span.trained) for span in self.spans[1:]]
        return _joined(marks, np.bool_)

    @property
    def trained_spans(self) -> tuple[Span, ...]:
        """The spans whose tokens the loss counts."""
        return tuple(span for span in self.spans if span.trained)

    @property
    def num_trained(self) -> int:
        """How many tokens are trained."""
        return sum(len(span.token_ids) for span in self.trained_spans)

    @property
    def num_sampled(self) -> int:
        """How many tokens the policy wrote, those that are not trained among them."""
        return sum(len(span.token_ids) for span in self.spans if span.author == "policy")

    @property
    def trained_ids(self) -> Int[np.ndarray, " N"]:
        """The trained tokens."""
        return _joined([span.token_ids for span in self.trained_spans], np.int32)

    @property
    def trained_logps(self) -> Float[np.ndarray, " N"]:
        """Their log-probabilities as the sampler saw them."""
        logps = [span.logps for span in self.trained_spans if span.logps is not None]
        return _joined(logps, np.float32)

    @property
    def trained_versions(self) -> Int[np.ndarray, " N"]:
        """Optimizer steps that the policies which drew them had taken."""
        versions = [span.versions for span in self.trained_spans if span.versions is not None]
        return _joined(versions, np.int32)

    @property
    def policy_version(self) -> int | None:
        """Optimizer steps of the policy that drew the last trained token, if there is one."""
        versions = self.trained_versions
        return int(versions[-1]) if len(versions) else None

    @property
    def total_reward(self) -> float:
        """What it earned in all: as a whole, by its turns and by its tokens."""
        turns = sum(span.reward for span in self.spans if span.reward is not None)
        tokens = 0.0 if self.token_rewards is None else float(self.token_rewards.sum())
        return self.reward + turns + tokens

    @property
    def reward_of_tokens(self) -> Float[np.ndarray, " N"]:
        """The reward of every trained token.

        What the whole earned stands at the last of them, what a turn earned at the last one up to
        its end. No token is to blame for what was earned before the first.
        """
        found = np.zeros(self.num_trained, np.float32)
        if self.token_rewards is not None:
            found += self.token_rewards
        end = 0
        for span in self.spans:
            end += len(span.token_ids) if span.trained else 0
            if span.reward is not None and end:
                found[end - 1] += np.float32(span.reward)
        if end:
            found[end - 1] += np.float32(self.reward)
        return found

    @property
    def advantage_of_tokens(self) -> Float[np.ndarray, " N"]:
        """The advantage of every trained token."""
        if self.token_advantages is not None:
            return self.token_advantages
        return np.full(self.num_trained, self.advantage, np.float32)

    @property
    def is_dead(self) -> bool:
        """Whether no token has an advantage."""
        if self.token_advantages is None:
            return self.advantage == 0.0
        return not self.token_advantages.any()

    @property
    def truncated(self) -> bool:
        """Whether it was cut off before it ended by itself."""
        return self.finish_reason == "length"

    def trained_length(self, *, mask_truncated: bool) -> int:
        """Return how many tokens the loss counts."""
        return 0 if mask_truncated and self.truncated else self.num_trained


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """All trajectories that begin with one prompt: any number, of any number of turns."""

    prompt: str
    trajectories: Sequence[Trajectory]
    prompt_key: int | str | None = None
    """What tells the prompt from others over the whole run, if the data says."""
    columns: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What else the data says of the prompt, e.g. the right answer."""

    @property
    def prompt_ids(self) -> Int[np.ndarray, " P"]:
        """The tokens of the prompt."""
        return self.trajectories[0].prompt_ids

    @property
    def is_dead(self) -> bool:
        """Whether no completion is better than another, so that the group teaches nothing."""
        return all(t.is_dead for t in self.trajectories)


def _joined(parts: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    """Return the parts behind each other, the only one itself."""
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.zeros(0, dtype)
