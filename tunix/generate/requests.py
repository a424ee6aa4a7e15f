"""What an engine is asked for, checked all at once before anything runs."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int, PRNGKeyArray, UInt32

from tunix.generate import sampling_params
from tunix.models.transformer import token_ids as token_ids_lib
from tunix.utils import problems as problems_lib


class PromptError(problems_lib.ProblemsError):
    """Prompts that cannot be continued, with every reason why."""

    headline = "cannot generate"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """One continuation that is wanted; what it draws depends on what stands here alone."""

    token_ids: Sequence[int] | Int[np.ndarray, " T"]
    """The prompt."""
    params: sampling_params.SamplingParams
    key: PRNGKeyArray
    """With :attr:`index`, decides every draw."""
    index: int = 0
    """Which sample of ``key`` it is: requests that share a key have different ones."""
    forbidden_tokens: Sequence[int] = ()
    """Ids that are never drawn."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt and how it is continued."""

    token_ids: Int[np.ndarray, " T"]
    params: sampling_params.SamplingParams

    @functools.cached_property
    def identity(self) -> bytes:
        """What prompts of the same tokens, and no others, have in common."""
        return self.token_ids.tobytes()


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


def key_words(key: PRNGKeyArray) -> UInt32[np.ndarray, " W"]:
    """Return the data of a key, old-style or new.

    Raises:
        ValueError: If it is a key of another generator than JAX's default.
    """
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return np.asarray(key)
    default = jax.config.values["jax_default_prng_impl"]
    if (found := str(jax.random.key_impl(key))) != default:
        raise ValueError(
            f"the key is one of {found}, and the engine draws with JAX's default, {default}; "
            "make it with jax.random.key(seed)"
        )
    return np.asarray(jax.random.key_data(key))
