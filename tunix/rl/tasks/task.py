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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """Questions and the reward of a reply."""

    name: str
    questions: Callable[[], Sequence[Question]]
    """All questions, always in the same order."""
    reward_fn: Callable[..., list[float]]
    """``fn(completions, answer, finish_reasons) -> list[float]``."""
    max_tokens_to_generate: int
    """Enough for a right reply of a model that chats a little."""

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
