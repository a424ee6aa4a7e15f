"""What a verifiable task is: questions that split cleanly, and a reward that checks replies."""

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """One question and its answer."""

    text: str
    answer: Any
    key: Hashable
    """Questions with equal keys are never divided between training and evaluation."""

    @property
    def row(self) -> Row:
        """The question as a row of data: a conversation to answer, and the answer."""
        return {"prompts": [{"role": "user", "content": self.text}], "answer": self.answer}


RewardFn = Callable[..., list[float]]
"""``fn(completions, answer, finish_reasons) -> list[float]``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """Questions and the rewards of a reply."""

    name: str
    questions: Callable[[], Sequence[Question]]
    """All questions, always in the same order."""
    reward_fn: RewardFn
    """1 for what the question asks for, else 0."""
    guide_fn: RewardFn | None = None
    """What leads there, where an untrained model is hardly ever rewarded: how near it is."""
    max_tokens_to_generate: int
    """Enough for a right reply of a model that chats a little."""

    @property
    def reward_fns(self) -> list[RewardFn]:
        """Everything that rewards a reply, first what is asked for."""
        return [self.reward_fn, *([] if self.guide_fn is None else [self.guide_fn])]

    def split(self, *, seed: int, held_out: int) -> tuple[list[Row], list[Row]]:
        """Return shuffled rows for training and at least ``held_out`` rows nobody trains on.

        The same seed gives the same rows in the same order, anywhere.

        Raises:
            ValueError: If so many rows are held out that none are left to train on.
        """
        by_key: dict[Hashable, list[Row]] = {}
        for question in self.questions():
            by_key.setdefault(question.key, []).append(question.row)
        rng = np.random.default_rng(seed)
        keys = list(by_key)
        train: list[Row] = []
        kept: list[Row] = []
        for i in rng.permutation(len(keys)):
            (kept if len(kept) < held_out else train).extend(by_key[keys[i]])
        if not train:
            raise ValueError(
                f"task {self.name}: held_out={held_out} leaves no rows to train on; "
                f"there are {len(kept)} in all"
            )
        return [train[i] for i in rng.permutation(len(train))], kept


def reward_where(right: Sequence[bool], finish_reasons: Sequence[str]) -> list[float]:
    """Return 1 for a right reply that ended by itself, else 0."""
    return [
        1.0 if is_right and reason == "stop" else 0.0
        for is_right, reason in zip(right, finish_reasons, strict=True)
    ]


def mean_over_words(
    completions: Sequence[str],
    answers: Sequence[Any],
    finish_reasons: Sequence[str],
    worth: Callable[[str, Any], float],
) -> list[float]:
    """Return the mean worth of the words of a reply that ended by itself, else 0.

    Args:
        completions: The replies.
        answers: The right ones.
        finish_reasons: Why each ended.
        worth: ``worth(word, answer)``, 1 if the word is the answer.
    """
    found = []
    for reply, answer, reason in zip(completions, answers, finish_reasons, strict=True):
        words = reply.split() if reason == "stop" else []
        found.append(sum(worth(word, answer) for word in words) / max(1, len(words)))
    return found
