"""Turns examples into tokens with loss weights.

The weight of a token says how much predicting it counts. It follows from who wrote the
token, never from its id: EOS is trained where the model must learn to stop, although
padding may share its id. The first token of an example has no weight, for nothing
precedes it.

Text columns are finished text: special tokens spelt in them are special. Messages are
data: nothing a message says becomes a special token.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, Int

from tunix.data import formats


class EncodedChat(Protocol):
    """Ids of a conversation and the tokens ``[start, end)`` of each trained reply."""

    @property
    def ids(self) -> list[int]:
        """All tokens."""
        ...

    @property
    def spans(self) -> Sequence[tuple[int, int]]:
        """Where the trained replies are."""
        ...


class Tokenizer(Protocol):
    """What data needs from a tokenizer; ``TokenizerAdapter`` has it."""

    def prefix_ids(self) -> list[int]:
        """Return BOS, or nothing: what every text begins with."""
        ...

    def encode_text(self, text: str, *, continues: bool = False) -> list[int]:
        """Return ids without additions."""
        ...

    def dedup_bos_ids(self, ids: list[int]) -> list[int]:
        """Return ids with at most one BOS in front."""
        ...

    def eos_id(self) -> int:
        """Return the id that ends a text."""
        ...

    def eos_ids(self) -> tuple[int, ...]:
        """Return every id that ends a generation."""
        ...

    def pad_id(self) -> int:
        """Return an id to fill rows with."""
        ...

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        train_from: int = 0,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> EncodedChat:
        """Return a conversation and the replies from message ``train_from`` on."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class TokenizedExample:
    """One training sequence, unpadded."""

    tokens: Int[np.ndarray, " T"]
    """int32."""
    loss_weights: Float[np.ndarray, " T"]
    """float32; entry t weighs the prediction of token t, so entry 0 is 0."""

    @property
    def trained_tokens(self) -> int:
        """How many tokens have any weight."""
        return int(np.count_nonzero(self.loss_weights))

    def truncated(self, length: int) -> "TokenizedExample":
        """Return the first ``length`` tokens."""
        return TokenizedExample(self.tokens[:length], self.loss_weights[:length])


def tokenize(example: formats.Example, tokenizer: Tokenizer) -> TokenizedExample:
    """Return the tokens of one example, with loss on what the model should learn to write.

    Raises:
        ValueError: If the tokenizer cannot render a conversation.
    """
    match example:
        case formats.Text(text):
            ids = _open(tokenizer, text)
            return _weighted(_close(tokenizer, ids), [(0, None)])
        case formats.PromptCompletion(prompt, completion):
            ids = _open(tokenizer, prompt)
            reply = _close(tokenizer, tokenizer.encode_text(completion, continues=True))
            return _weighted(ids + reply, [(len(ids), None)])
        case formats.Conversation(messages, tools, train_from):
            options = {} if tools is None else {"tools": tools}
            chat = tokenizer.encode_chat(messages, train_from=train_from, **options)
            return _weighted(chat.ids, chat.spans)


def _open(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the ids of a text that begins a document."""
    return tokenizer.dedup_bos_ids(tokenizer.prefix_ids() + tokenizer.encode_text(text))


def _close(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """Return ``ids`` with EOS at the end, unless they stop by themselves."""
    stops = bool(ids) and ids[-1] in tokenizer.eos_ids()
    return ids if stops else [*ids, tokenizer.eos_id()]


def _weighted(ids: Sequence[int], spans: Sequence[tuple[int, int | None]]) -> TokenizedExample:
    weights = np.zeros(len(ids), np.float32)
    for start, end in spans:
        weights[start:end] = 1.0
    weights[:1] = 0.0
    return TokenizedExample(np.asarray(ids, np.int32), weights)
