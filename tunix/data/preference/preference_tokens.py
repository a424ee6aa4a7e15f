"""Turns prompts and their answers into tokens: the prompt once, and each answer behind it.

What counts of an answer is what the model would write: the assistant's messages with the tokens
that end them, not the turns of others in between. Text columns are finished text, messages are
data, as in :mod:`tunix.data.tokenize`.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from tunix.data import formats, tokenize
from tunix.data.preference import preference_formats


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
    """The tokens that follow a prompt."""

    tokens: Int[np.ndarray, " T"]
    mask: Bool[np.ndarray, " T"]
    """Which of them count; the last one does."""

    @property
    def length(self) -> int:
        """How many tokens count."""
        return int(self.mask.sum())

    def truncated(self, length: int) -> "Answer":
        """Return the first ``length`` tokens, up to the last one that counts."""
        return _trimmed(self.tokens[:length], self.mask[:length])


class RefLogps(NamedTuple):
    """Log-probabilities of two answers under the reference, computed beforehand."""

    first: float
    second: float


@dataclasses.dataclass(frozen=True, eq=False)
class TokenizedPair:
    """A prompt with a better and a worse answer."""

    prompt: Int[np.ndarray, " P"]
    chosen: Answer
    rejected: Answer
    margin: float = 0.0
    ref_logps: RefLogps | None = None
    """Of the chosen and the rejected answer."""
    checksum: int = 0
    """Of the row it was made of, see ``fingerprint``."""

    @property
    def answers(self) -> tuple[Answer, Answer]:
        """Both answers, the chosen one first."""
        return self.chosen, self.rejected


@dataclasses.dataclass(frozen=True, eq=False)
class TokenizedRating:
    """A prompt with an answer that is good or bad, and an answer to another prompt."""

    prompt: Int[np.ndarray, " P"]
    answer: Answer
    is_desirable: bool
    foreign: Answer | None = None
    """An answer to another prompt, from which KTO estimates how far the policy has moved."""
    ref_logps: RefLogps | None = None
    """Of the answer and of the foreign one."""
    checksum: int = 0
    """Of the row it was made of, see ``fingerprint``."""

    @property
    def answers(self) -> tuple[Answer, ...]:
        """The answer, and the foreign one if there is any."""
        return (self.answer,) if self.foreign is None else (self.answer, self.foreign)


def tokenize_pair(pair: preference_formats.Pair, tokenizer: tokenize.Tokenizer) -> TokenizedPair:
    """Return the tokens of a pair.

    Raises:
        ValueError: If the tokenizer cannot render a conversation, an answer has no token that
            counts, or the two answers do not follow the same tokens.
    """
    prompt, chosen = tokenize_answer(pair.prompt, pair.chosen, pair.tools, tokenizer)
    other_prompt, rejected = tokenize_answer(pair.prompt, pair.rejected, pair.tools, tokenizer)
    if not np.array_equal(prompt, other_prompt):
        raise ValueError(
            f"the prompt has {len(prompt)} tokens in front of the chosen and {len(other_prompt)} "
            "other ones in front of the rejected answer, so the chat template renders it "
            "differently; use a template that does not look ahead"
        )
    return TokenizedPair(prompt, chosen, rejected, pair.margin)


def tokenize_rating(
    rating: preference_formats.Rating, tokenizer: tokenize.Tokenizer
) -> TokenizedRating:
    """Return the tokens of a rated answer, without a foreign one.

    Raises:
        ValueError: If the tokenizer cannot render it, or no token of the answer counts.
    """
    prompt, answer = tokenize_answer(rating.prompt, rating.answer, rating.tools, tokenizer)
    return TokenizedRating(prompt, answer, rating.is_desirable)


def is_same(one: Answer, other: Answer) -> bool:
    """Return whether two answers have the same tokens."""
    return np.array_equal(one.tokens, other.tokens) and np.array_equal(one.mask, other.mask)


def tokenize_answer(
    prompt: str | preference_formats.Messages,
    answer: str | preference_formats.Messages,
    tools: preference_formats.Tools,
    tokenizer: tokenize.Tokenizer,
) -> tuple[Int[np.ndarray, " P"], Answer]:
    """Return the tokens of a prompt and those of an answer to it.

    Raises:
        ValueError: If the tokenizer cannot render a conversation, or no token of the answer counts.
    """
    if isinstance(prompt, str) or isinstance(answer, str):
        example: formats.Example = formats.PromptCompletion(str(prompt), str(answer))
    else:
        example = formats.Conversation([*prompt, *answer], tools, train_from=len(prompt))
    found = tokenize.tokenize(example, tokenizer)
    counts = found.loss_weights > 0
    if not counts.any():
        raise ValueError("the answer has no token that counts; the assistant says nothing in it")
    start = int(np.argmax(counts))
    return found.tokens[:start], _trimmed(found.tokens[start:], counts[start:])


def _trimmed(tokens: Int[np.ndarray, " T"], mask: Bool[np.ndarray, " T"]) -> Answer:
    """Return an answer without what follows its last token that counts."""
    end = int(np.max(np.flatnonzero(mask), initial=-1)) + 1
    return Answer(tokens[:end], mask[:end])
