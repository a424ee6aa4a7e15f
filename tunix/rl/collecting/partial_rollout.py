"""Completions sampled a stretch at a time; those that take long go on in later steps.

A step waits for as many prompts as a batch has, not for the longest completion of them. What is
unfinished then is carried over and continues under newer weights: its tokens so far are
prefilled again, and keep the log-probabilities and the version of the policy that drew them
(partial rollouts: Kimi team, 2025, "Kimi k1.5", arXiv:2501.12599, section 2.6.2).
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from tunix.generate import completion
from tunix.rl.collecting import ragged_json
from tunix.utils import config as config_lib

GenerateFn = Callable[
    [Sequence[Int[np.ndarray, " T"]], int], tuple[Sequence[completion.Completion], int]
]
"""``fn(token_ids, num_samples)`` returns the next stretch of each sample, and the version of the
policy that drew it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """A completion, finished or not."""

    token_ids: Int[np.ndarray, " T"]
    logps: Float[np.ndarray, " T"]
    sampled_logps: Float[np.ndarray, " T"]
    versions: Int[np.ndarray, " T"]
    """Optimizer steps that the policy which drew each token had taken."""
    finish_reason: completion.FinishReason | None = None
    """``None`` as long as it goes on."""

    @classmethod
    def empty(cls) -> "Sample":
        """Return one without tokens."""
        none = np.zeros(0, np.float32)
        ids = np.zeros(0, np.int32)
        return cls(token_ids=ids, logps=none, sampled_logps=none, versions=ids)

    def continued(self, stretch: completion.Completion, version: int, limit: int) -> "Sample":
        """Return the sample with further tokens; it is cut off at ``limit`` tokens."""
        length = len(self.token_ids) + len(stretch.token_ids)
        is_over = stretch.finish_reason == "stop" or length >= limit
        added = np.full(len(stretch.token_ids), version, np.int32)
        return Sample(
            token_ids=np.concatenate([self.token_ids, stretch.token_ids]),
            logps=np.concatenate([self.logps, stretch.logps]),
            sampled_logps=np.concatenate([self.sampled_logps, stretch.sampled_logps]),
            versions=np.concatenate([self.versions, added]),
            finish_reason=stretch.finish_reason if is_over else None,
        )

    @property
    def completion(self) -> completion.Completion:
        """The sample as an engine returns it, once it is finished."""
        assert self.finish_reason is not None  # only finished groups leave the pool
        return completion.Completion(
            token_ids=self.token_ids,
            logps=self.logps,
            sampled_logps=self.sampled_logps,
            finish_reason=self.finish_reason,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """A prompt with its completions, finished or not."""

    prompt: str
    prompt_ids: Int[np.ndarray, " P"]
    row: Mapping[str, Any]
    """The columns of the data."""
    samples: tuple[Sample, ...]

    @property
    def is_fresh(self) -> bool:
        """Whether nothing was sampled yet."""
        return not any(len(sample.token_ids) for sample in self.samples)

    @property
    def is_finished(self) -> bool:
        """Whether all completions are."""
        return all(sample.finish_reason is not None for sample in self.samples)


def check(stretch: int, limit: int) -> None:
    """Raise if completions of at most ``limit`` tokens are no whole number of stretches.

    Raises:
        ConfigError: Then; an engine draws stretches of one length.
    """
    if limit % stretch:
        raise config_lib.ConfigError(
            "partial_rollout_tokens",
            [f"max_tokens_to_generate {limit} is not a multiple of it, {stretch}; change one"],
        )


def finish(
    pool: Sequence[Group], generate: GenerateFn, *, wanted: int, limit: int
) -> tuple[list[Group], tuple[Group, ...]]:
    """Sample stretch by stretch until enough groups are finished.

    Args:
        pool: Groups, the oldest first.
        generate: Samples a stretch.
        wanted: Groups that are needed; of a smaller pool, all.
        limit: Tokens after which a completion is cut off.

    Returns:
        The oldest finished groups, at most ``wanted``, and all others.
    """
    groups = list(pool)
    while sum(group.is_finished for group in groups) < min(wanted, len(groups)):
        groups = _advanced(groups, generate, limit)
    taken = [i for i, group in enumerate(groups) if group.is_finished][:wanted]
    return [groups[i] for i in taken], tuple(g for i, g in enumerate(groups) if i not in taken)


def _advanced(groups: Sequence[Group], generate: GenerateFn, limit: int) -> list[Group]:
    """Return the groups with a stretch more of all that is unfinished."""
    samples = [list(group.samples) for group in groups]
    fresh = [g for g, group in enumerate(groups) if group.is_fresh]
    if fresh:
        # One prefill for all samples of a prompt.
        count = len(groups[fresh[0]].samples)
        prompts = [groups[g].prompt_ids for g in fresh]
        stretches, version = generate(prompts, count)
        for i, stretch in enumerate(stretches):
            g, s = fresh[i // count], i % count
            samples[g][s] = samples[g][s].continued(stretch, version, limit)
    going_on = [
        (g, s)
        for g, group in enumerate(groups)
        for s, sample in enumerate(group.samples)
        if not group.is_fresh and sample.finish_reason is None
    ]
    if going_on:
        prompts = [np.append(groups[g].prompt_ids, samples[g][s].token_ids) for g, s in going_on]
        stretches, version = generate(prompts, 1)
        for (g, s), stretch in zip(going_on, stretches, strict=True):
            samples[g][s] = samples[g][s].continued(stretch, version, limit)
    return [
        dataclasses.replace(group, samples=tuple(own))
        for group, own in zip(groups, samples, strict=True)
    ]


def to_json(group: Group) -> dict[str, Any]:
    """Return a group as something that JSON can hold.

    Raises:
        ValueError: If its row has a value that JSON cannot hold.
    """
    for name, value in group.row.items():
        try:
            json.dumps(value)
        except TypeError:
            raise ValueError(
                f"column {name!r} has a {type(value).__name__}, and a checkpoint holds the rows "
                "of unfinished completions as JSON; make it text or numbers, or leave "
                "partial_rollout_tokens out"
            ) from None
    samples = group.samples
    return {
        "prompt": group.prompt,
        "row": dict(group.row),
        "prompt_ids": ragged_json.encode([group.prompt_ids]),
        "finish_reasons": [sample.finish_reason for sample in samples],
        **{
            name: ragged_json.encode([getattr(sample, name) for sample in samples])
            for name in _ARRAYS
        },
    }


def from_json(saved: Mapping[str, Any]) -> Group:
    """Return what :func:`to_json` was called on."""
    arrays = zip(*(ragged_json.decode(saved[name]) for name in _ARRAYS), strict=True)
    return Group(
        prompt=saved["prompt"],
        prompt_ids=ragged_json.decode(saved["prompt_ids"])[0],
        row=saved["row"],
        samples=tuple(
            Sample(**dict(zip(_ARRAYS, own, strict=True)), finish_reason=reason)
            for own, reason in zip(arrays, saved["finish_reasons"], strict=True)
        ),
    )


_ARRAYS = ("token_ids", "logps", "sampled_logps", "versions")
