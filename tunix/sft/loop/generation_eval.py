"""Evaluation by generation: replies to held-out prompts, sampled from the model and scored.

A trainer takes it with ``with_eval_metrics`` and calls it at every evaluation. Replies are greedy
and nothing of the trainer is changed, so training goes on as it would without.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from flax import nnx
from jaxtyping import Float

from tunix.data import questions as questions_lib

if TYPE_CHECKING:
    from tunix.sft import peft_trainer


class Reply(Protocol):
    """What ``tunix.generate.greedy_replies`` returns for a prompt."""

    @property
    def text(self) -> str:
        """The reply, without what ended it."""
        ...

    @property
    def num_tokens(self) -> int:
        """Tokens generated."""
        ...

    @property
    def is_cut(self) -> bool:
        """Whether it was cut because it was too long."""
        ...


ReplyFn = Callable[[nnx.Module, Sequence[Sequence[int]]], Sequence[Reply]]
"""Replies of a model to prompts of token ids."""

ScoreFn = Callable[
    [Sequence[str], Sequence[str], Mapping[str, Sequence[Any]]],
    Mapping[str, Float[np.ndarray, " B"]],
]
"""``fn(prompts, completions, columns)``: scores by name, NaN where one does not apply."""

PREFIX = "generation/"


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationEval:
    """Asks a trainer's model questions and scores what it says.

    The metrics are ``generation/NAME``, the mean of each score over the questions that it applies
    to, ``generation/completion_length`` in tokens and ``generation/truncated``, the share of
    replies that were cut.
    """

    questions: questions_lib.Questions
    """What is asked, at every evaluation the same."""

    reply: ReplyFn
    """Samples, e.g. ``tunix.generate.greedy_replies.GreedyReplies``."""

    score: ScoreFn
    """E.g. ``tunix.sft.loop.reply_scores.Scores``, or what a reward manager finds per function."""

    directory: pathlib.Path | None = None
    """Where the replies after step N are kept, as ``N.jsonl``; ``None`` keeps none."""

    def __call__(self, trainer: "peft_trainer.PeftTrainer") -> dict[str, float]:
        """Return the metrics of the model as it is now."""
        asked = self.questions
        replies = self.reply(trainer.sync_model(), asked.token_ids)
        texts = [one.text for one in replies]
        scores = self.score(asked.texts, texts, asked.columns)
        own = {
            "completion_length": float(np.mean([one.num_tokens for one in replies])),
            "truncated": float(np.mean([one.is_cut for one in replies])),
        }
        if taken := sorted(own.keys() & scores.keys()):
            raise ValueError(f"a score must not be called {taken[0]!r}, which is measured anyway")
        if self.directory is not None:
            self._write(self.directory, trainer.train_steps, replies, scores)
        means = {
            name: float(np.nanmean(values))
            for name, values in scores.items()
            if not np.isnan(values).all()
        }
        return {PREFIX + name: value for name, value in (means | own).items()}

    def _write(
        self,
        directory: pathlib.Path,
        step: int,
        replies: Sequence[Reply],
        scores: Mapping[str, Float[np.ndarray, " B"]],
    ) -> None:
        """Write the replies of one step; a resumed run writes the same file again."""
        directory.mkdir(parents=True, exist_ok=True)
        lines = []
        for i, (prompt, one) in enumerate(zip(self.questions.texts, replies, strict=True)):
            row = {
                "step": step,
                "prompt": prompt,
                "reference": self.questions.columns[questions_lib.REFERENCE][i],
                "completion": one.text,
                "scores": {
                    name: None if np.isnan(values[i]) else float(values[i])
                    for name, values in scores.items()
                },
                "num_tokens": one.num_tokens,
                "is_cut": one.is_cut,
            }
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        target = directory / f"{step:06d}.jsonl"
        partial = target.with_suffix(".tmp")
        partial.write_text("".join(lines), encoding="utf-8")
        os.replace(partial, target)
