"""Prompts and settings, checked all at once before anything runs."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

from tunix.generate import sampling_params
from tunix.models.transformer import token_ids as token_ids_lib
from tunix.utils import problems as problems_lib


class PromptError(problems_lib.ProblemsError):
    """Prompts that cannot be continued, with every reason why."""

    headline = "cannot generate"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt and how it is continued."""

    token_ids: Int[np.ndarray, " T"]
    params: sampling_params.SamplingParams


def check(
    prompts: Sequence[Sequence[int]],
    params: sampling_params.SamplingParams | Sequence[sampling_params.SamplingParams],
    *,
    cache_size: int,
    vocab_size: int,
) -> list[Prompt]:
    """Return the prompts with their settings.

    Args:
        prompts: Token ids of each prompt.
        params: Settings of all prompts, or one for each.
        cache_size: How many tokens a prompt and its continuation may have together.
        vocab_size: Token ids lie in ``[0, vocab_size)``.

    Raises:
        PromptError: Listing every prompt that is empty, too long for the cache or has an id
            outside of the vocabulary.
    """
    if isinstance(params, sampling_params.SamplingParams):
        params = [params] * len(prompts)
    if len(params) != len(prompts):
        raise PromptError([f"{len(prompts)} prompts but {len(params)} SamplingParams"])
    checked, problems = [], []
    for i, (ids, own) in enumerate(zip(prompts, params, strict=True)):
        # Through int64: an id too large for int32 must not wrap into the vocabulary.
        token_ids = np.asarray(ids, np.int64).reshape(-1)
        problems += _problems(i, token_ids, own, cache_size, vocab_size)
        checked.append(Prompt(token_ids=token_ids.astype(np.int32), params=own))
    if problems:
        raise PromptError(problems)
    return checked


def _problems(
    index: int,
    token_ids: Int[np.ndarray, " T"],
    params: sampling_params.SamplingParams,
    cache_size: int,
    vocab_size: int,
) -> list[str]:
    length, new = len(token_ids), params.max_new_tokens
    if not length:
        return [f"prompt {index} is empty; a model needs at least one token to continue"]
    problems = []
    if length + new > cache_size:
        problems.append(
            f"prompt {index} has {length} tokens, which with max_new_tokens={new} exceeds the "
            f"cache of {cache_size}; shorten it to {max(cache_size - new, 0)} tokens or raise "
            f"cache_size to {length + new}"
        )
    outside = token_ids_lib.outside(token_ids, vocab_size)
    if outside.size:
        ids = token_ids_lib.shown(outside)
        problems.append(f"prompt {index} has token ids {ids}, {token_ids_lib.unknown(vocab_size)}")
    return problems


def pad(
    prompts: Sequence[Prompt], *, rows: int, size: int
) -> tuple[Int[np.ndarray, "P L"], Int[np.ndarray, " P"]]:
    """Return right-padded token ids and lengths; unused rows have length 0."""
    tokens, lengths = np.zeros((rows, size), np.int32), np.zeros(rows, np.int32)
    for row, prompt in enumerate(prompts):
        lengths[row] = len(prompt.token_ids)
        tokens[row, : lengths[row]] = prompt.token_ids
    return tokens, lengths


def banned_mask(forbidden_tokens: Sequence[int], vocab_size: int) -> Bool[np.ndarray, " V"]:
    """Return True for tokens that must not be drawn.

    Raises:
        ValueError: If an id is not in the vocabulary, or no token would be left.
    """
    mask = np.zeros(vocab_size, bool)
    if outside := [i for i in forbidden_tokens if not 0 <= i < vocab_size]:
        raise ValueError(
            f"forbidden_tokens {outside} are outside of the vocabulary of {vocab_size}"
        )
    mask[list(forbidden_tokens)] = True
    if mask.all():
        raise ValueError("forbidden_tokens covers the whole vocabulary; nothing could be drawn")
    return mask
