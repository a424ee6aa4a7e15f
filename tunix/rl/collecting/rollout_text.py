"""Text around a rollout: prompts become token ids before it, completions text after it."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int

from tunix.generate import completion, requests
from tunix.tokenizers import tokenizer_adapter

Message = Mapping[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodedPrompt:
    """A prompt as text and as ids."""

    text: str
    token_ids: Int[np.ndarray, " P"]


def encode_prompts(
    tokenizer: tokenizer_adapter.TokenizerAdapter,
    prompts: Sequence[str] | Sequence[Sequence[Message]],
    *,
    apply_chat_template: bool,
    max_prompt_length: int,
) -> list[EncodedPrompt]:
    """Return every prompt with its token ids.

    Args:
        tokenizer: Encodes them.
        prompts: Texts, taken as they stand, or conversations for the chat template.
        apply_chat_template: Take a text as the user's message instead.
        max_prompt_length: Longest number of tokens allowed.

    Raises:
        PromptError: Listing every prompt that is empty or too long.
    """
    encoded, problems = [], []
    for i, prompt in enumerate(prompts):
        if apply_chat_template and isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        token_ids = np.asarray(tokenizer.encode_prompt(prompt), np.int32)
        text = prompt if isinstance(prompt, str) else str(tokenizer.apply_chat_template(prompt))
        encoded.append(EncodedPrompt(text=text, token_ids=token_ids))
        if not len(token_ids):
            problems.append(f"prompt {i} is empty; a model needs at least one token to continue")
        elif len(token_ids) > max_prompt_length:
            problems.append(
                f"prompt {i} has {len(token_ids)} tokens, max_prompt_length allows "
                f"{max_prompt_length}; raise it or leave the row out: {text[:80]!r}"
            )
    if problems:
        raise requests.PromptError(problems)
    return encoded


def completion_text(
    tokenizer: tokenizer_adapter.TokenizerAdapter, one: completion.Completion
) -> str:
    """Return the text of a completion, without the token that ended it and other special ones."""
    ids = one.token_ids[:-1] if one.finish_reason == "stop" else one.token_ids
    return tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)
