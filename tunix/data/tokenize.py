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
from typing import Any, Literal, Protocol

import numpy as np
from jaxtyping import Float, Int

from tunix.data import formats

TrainOn = Literal["replies", "everything"]
"""What has loss: completions and replies of the assistant, or every token but the first."""


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

    def lacks_chat_template(self, text: str) -> bool:
        """Return whether there is a chat template that nobody has applied to ``text``."""
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
    checksum: int = 0
    """Of the row it was made of, see ``fingerprint``."""

    @property
    def trained_tokens(self) -> int:
        """How many tokens have any weight."""
        return int(np.count_nonzero(self.loss_weights))

    def first(self, length: int) -> "TokenizedExample":
        """Return the first ``length`` tokens."""
        return dataclasses.replace(
            self, tokens=self.tokens[:length], loss_weights=self.loss_weights[:length]
        )

    def last(self, length: int, *, keep: int = 0) -> "TokenizedExample":
        """Return the last ``length`` tokens; the first ``keep`` of them stay the first.

        What follows the cut has no weight: it would be predicted from what it did not follow.
        """
        cut = len(self.tokens) - (length - keep)
        weights = np.concatenate([self.loss_weights[:keep], self.loss_weights[cut:]])
        weights[keep] = 0.0
        tokens = np.concatenate([self.tokens[:keep], self.tokens[cut:]])
        return dataclasses.replace(self, tokens=tokens, loss_weights=weights)


def tokenize(
    example: formats.Example, tokenizer: Tokenizer, *, train_on: TrainOn = "replies"
) -> TokenizedExample:
    """Return the tokens of one example, with loss on what the model should learn to write.

    Args:
        example: Text, a prompt with its completion, or a conversation.
        tokenizer: Encodes them.
        train_on: ``everything`` trains prompts, too; weights that messages have stay theirs.

    Raises:
        ValueError: If the tokenizer cannot render a conversation, or BOS stands where
            a sampler would never see it.
    """
    rest = 1.0 if train_on == "everything" else 0.0
    match example:
        case formats.Text(text):
            ids = _close(tokenizer, _open(tokenizer, text))
            found = _weighted(ids, [(0, None, 1.0)], rest)
        case formats.PromptCompletion(prompt, completion):
            ids = _open(tokenizer, prompt)
            reply = _close(tokenizer, tokenizer.encode_text(completion, continues=True))
            if reply[:1] == tokenizer.prefix_ids() and reply[0] not in tokenizer.eos_ids():
                raise ValueError(
                    "the completion begins with BOS, although it continues the prompt; remove it"
                )
            found = _weighted(ids + reply, [(len(ids), None, 1.0)], rest)
        case formats.Conversation():
            found = _tokenize_chat(example, tokenizer, rest)
    _check_bos(found.tokens, tokenizer)
    return found


def is_plain(example: formats.Example, tokenizer: Tokenizer) -> bool:
    """Return whether an example is text that lacks the form of the tokenizer's chat template."""
    match example:
        case formats.Text(text):
            return tokenizer.lacks_chat_template(text)
        case formats.PromptCompletion(prompt, completion):
            return tokenizer.lacks_chat_template(prompt + completion)
    return False


def _tokenize_chat(
    example: formats.Conversation, tokenizer: Tokenizer, rest: float
) -> TokenizedExample:
    messages, start, weights = example.messages, example.train_from, example.weights
    options = {} if example.tools is None else {"tools": example.tools}
    chat = tokenizer.encode_chat(messages, train_from=start, **options)
    if weights is None:
        return _weighted(chat.ids, [(*span, 1.0) for span in chat.spans], rest)
    replies = [i for i, m in enumerate(messages) if m["role"] == "assistant" and i >= start]
    pairs = zip(replies, chat.spans, strict=True)
    return _weighted(chat.ids, [(*span, weights[i]) for i, span in pairs], rest)


def _check_bos(ids: Int[np.ndarray, " T"], tokenizer: Tokenizer) -> None:
    """Raise if BOS stands twice in a row: once by the template or text, once by the tokenizer."""
    bos = tokenizer.prefix_ids()
    if len(bos) != 1 or bos[0] in tokenizer.eos_ids():
        return
    twice = (ids[:-1] == bos[0]) & (ids[1:] == bos[0])
    if twice.any():
        raise ValueError(
            f"BOS stands twice, as tokens {int(twice.argmax())} and {int(twice.argmax()) + 1}; "
            "remove it from the chat template or from the text"
        )


def _open(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the ids of a text that begins a document."""
    return tokenizer.dedup_bos_ids(tokenizer.prefix_ids() + tokenizer.encode_text(text))


def _close(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """Return ``ids`` with EOS at the end, unless they stop by themselves."""
    stops = bool(ids) and ids[-1] in tokenizer.eos_ids()
    return ids if stops else [*ids, tokenizer.eos_id()]


def _weighted(
    ids: Sequence[int], spans: Sequence[tuple[int, int | None, float]], rest: float
) -> TokenizedExample:
    """Return ``ids`` with the weight of each span ``[start, end)``, and ``rest`` elsewhere."""
    weights = np.full(len(ids), rest, np.float32)
    for start, end, weight in spans:
        weights[start:end] = weight
    weights[:1] = 0.0
    return TokenizedExample(np.asarray(ids, np.int32), weights)
