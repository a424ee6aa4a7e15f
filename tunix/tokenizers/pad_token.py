"""The padding token of an exported reward model, by which transformers finds what is scored.

It scores the last token that is not the padding token, whatever the attention mask says. So a
token that may end a text must not be padding: it would be skipped, and the one before it scored.
"""

import json
import pathlib
from typing import Any

from tunix.tokenizers import tokenizer_adapter

_CONFIGS = ("tokenizer_config.json", "special_tokens_map.json")


def choose(tokenizer: tokenizer_adapter.TokenizerAdapter, num_embeddings: int) -> tuple[str, int]:
    """Return text and id of a special token that ends no text: the tokenizer's own if it can be.

    Otherwise one made for padding, a spare one, or any other.

    Args:
        tokenizer: Of the model.
        num_embeddings: Token ids lie below.

    Raises:
        TokenizerError: If there is none.
    """
    ends, roles = set(tokenizer.eos_ids()), tokenizer.special_ids
    usable = {
        text: token_id
        for text, token_id in tokenizer.special_tokens.items()
        if token_id not in ends and token_id < num_embeddings
    }
    if not usable:
        raise tokenizer_adapter.TokenizerError(
            f"the tokenizer has no special token that could be the padding of a reward model: the "
            f"tokens {sorted(ends)} end texts, and transformers would skip such a token instead of "
            "scoring it. Give the base model's tokenizer a pad_token for which the model has an "
            "embedding"
        )

    def rank(item: tuple[str, int]) -> tuple[bool, bool, bool, bool, int]:
        text, token_id = item
        is_spare = any(word in text.lower() for word in ("reserved", "unused"))
        is_named = "pad" in text.lower()
        return token_id != roles.pad, not is_named, not is_spare, token_id == roles.bos, token_id

    return min(usable.items(), key=rank)


def declare(folder: pathlib.Path, text: str) -> None:
    """Let the tokenizer in ``folder`` pad with the token ``text``."""
    for name in _CONFIGS:
        path = folder / name
        settings: dict[str, Any] = {}
        if path.exists():
            settings = json.loads(path.read_text(encoding="utf-8"))
        elif name != _CONFIGS[0]:
            continue
        changed = json.dumps({**settings, "pad_token": text}, indent=2, ensure_ascii=False)
        path.write_text(changed + "\n", encoding="utf-8")
