"""A tokenizer beside the embedding of a model, which may have fewer rows than it has ids, or more.

Ids without a row cannot be trained or continued: :class:`ModelTokenizer` refuses to write them.
Rows without a token pad the embedding to a round size: :func:`unused_ids` names them, and samplers
do not draw them (``docs/explanation/decisions/0018-rows-without-a-token.md``).
"""

from collections.abc import Sequence
from typing import Any

from tunix.models.transformer import token_ids
from tunix.tokenizers import chat_template, tokenizer_adapter


def unused_ids(
    tokenizer: tokenizer_adapter.TokenizerAdapter, num_embeddings: int
) -> tuple[int, ...]:
    """Return the rows of an embedding that are no token's, and so decode to nothing.

    None where the tokenizer does not tell its ids. An id that ends a generation is none of them.
    """
    known = tokenizer.known_ids()
    if known is None:
        return ()
    return tuple(sorted(set(range(num_embeddings)) - known - set(tokenizer.eos_ids())))


class ModelTokenizer(tokenizer_adapter.TokenizerAdapter):
    """A tokenizer that writes only ids for which the model has an embedding.

    Args:
        tokenizer: Anything that ``TokenizerAdapter`` wraps.
        num_embeddings: Of the model.

    Raises:
        TokenIdError: If the token that ends a text has no embedding.
    """

    def __init__(self, tokenizer: Any, num_embeddings: int):
        super().__init__(tokenizer)
        self._num_embeddings = num_embeddings
        self._checked([self.eos_id()])

    def pad_id(self) -> int:
        """Id that fills unused positions, one with an embedding."""
        pad = super().pad_id()
        return pad if pad < self._num_embeddings else self.eos_id()

    def prefix_ids(self) -> list[int]:
        """Ids before every text; see the base class."""
        return self._checked(super().prefix_ids())

    def encode(self, text: str, **kwargs: Any) -> list[int]:
        """Encode as the wrapped library does; see the base class."""
        return self._checked(super().encode(text, **kwargs))

    def encode_text(self, text: str, *, continues: bool = False) -> list[int]:
        """Encode without additions; see the base class."""
        return self._checked(super().encode_text(text, continues=continues))

    def encode_ordinary(self, text: str, *, continues: bool = False) -> list[int]:
        """Encode characters; see the base class."""
        return self._checked(super().encode_ordinary(text, continues=continues))

    def encode_chat(
        self,
        messages: Sequence[chat_template.Message],
        *,
        train_from: int = 0,
        **kwargs: Any,
    ) -> tokenizer_adapter.EncodedChat:
        """Encode a finished conversation; see the base class."""
        found = super().encode_chat(messages, train_from=train_from, **kwargs)
        self._checked(found.ids)
        return found

    def _encode_messages(
        self, messages: Sequence[chat_template.Message], options: dict[str, Any]
    ) -> list[int]:
        return self._checked(super()._encode_messages(messages, options))

    def _checked(self, ids: list[int]) -> list[int]:
        """Return ``ids``.

        Raises:
            TokenIdError: Naming the tokens that have no embedding.
        """
        size = self._num_embeddings
        if ids and max(ids) >= size:
            bad = token_ids.outside(ids, size)
            texts = ", ".join(repr(self._text_of(int(i))) for i in bad[: token_ids.MOST_SHOWN])
            raise token_ids.TokenIdError(
                f"the tokenizer writes {texts} as token ids {token_ids.shown(bad)}, "
                f"{token_ids.unknown(size)}"
            )
        return ids
