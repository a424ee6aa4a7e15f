"""Completions without a model: lengths from a distribution, tokens at random.

For tests of what surrounds sampling (queues, packing, asynchrony, reward functions), where only
the shape of a rollout matters and a forward pass would take all the time.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Int, PRNGKeyArray

from tunix.generate import completion
from tunix.rl.rollout import base_rollout

LengthFn = Callable[[np.random.Generator, int], int]
"""``fn(generator, longest)``: how many tokens a completion would like to have. One that asks for
more than ``longest`` is cut there and has no end, as a sampled one would."""

VOCABULARY = 32
"""Tokens that are drawn from where nothing else is said: the smallest ids that end no text."""


class MockRollout(base_rollout.BaseRollout):
    """Draws every token alike from a small vocabulary and ends a completion when its time is up.

    The draws of a completion follow from the key and its place in the call: equal keys give equal
    completions, whatever the prompts. Weights are neither read nor kept.

    Args:
        model: Not read.
        tokenizer: Says which tokens end a completion.
        cache_size: Not read: nothing is cached.
        max_slots: Not read: nothing is decoded.
        lengths: Draws lengths; see :func:`uniform`, :func:`log_normal`, :func:`of_lengths`. Give
            your own with ``rollout_engine=functools.partial(MockRollout, lengths=...)``.
        vocabulary: Tokens that are drawn from, by default the smallest ids that end no text.
    """

    takes_partial_updates = True

    def __init__(
        self,
        *,
        model: nnx.Module,
        tokenizer: Any,
        cache_size: int,
        max_slots: int,
        lengths: LengthFn | None = None,
        vocabulary: Sequence[int] | None = None,
    ):
        del model, cache_size, max_slots
        self._eos_ids = tuple(tokenizer.eos_ids())
        self._lengths = uniform() if lengths is None else lengths
        self._vocabulary = vocabulary

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        rollout_config: base_rollout.RolloutConfig,
        *,
        key: PRNGKeyArray,
        num_samples: int = 1,
    ) -> list[completion.Completion]:
        """Return ``num_samples`` completions of each prompt; see the base class."""
        words = np.asarray(jax.random.key_data(key)).reshape(-1).tolist()
        ends = rollout_config.eos_tokens
        ends = self._eos_ids if ends is None else tuple(ends)
        return [
            self._completion(
                np.random.default_rng([*words, place]), rollout_config.max_tokens_to_generate, ends
            )
            for place in range(len(prompts) * num_samples)
        ]

    def update_params(self, params: nnx.Module | nnx.State) -> None:
        """Take no notice: nothing is computed with weights."""

    def offload(self) -> None:
        """Do nothing: nothing is on a device."""

    def load(self) -> None:
        """Do nothing."""

    def _completion(
        self, generator: np.random.Generator, longest: int, ends: Sequence[int]
    ) -> completion.Completion:
        wanted = self._lengths(generator, longest)
        if wanted < 1:
            raise ValueError(f"a length function returned {wanted}; a completion has a token")
        vocabulary = self._tokens(ends)
        token_ids = generator.choice(vocabulary, min(wanted, longest)).astype(np.int32)
        stops = bool(ends) and wanted <= longest
        # Each token was as likely as any other, the one that ends the completion included.
        logps = np.full(len(token_ids), -np.log(len(vocabulary) + len(ends)), np.float32)
        if stops:
            token_ids[-1] = ends[0]
        return completion.Completion(
            token_ids=token_ids,
            logps=logps,
            sampled_logps=logps,
            finish_reason="stop" if stops else "length",
        )

    def _tokens(self, ends: Sequence[int]) -> Int[np.ndarray, " V"]:
        if self._vocabulary is not None:
            return np.asarray(self._vocabulary, np.int32)
        ids = np.arange(VOCABULARY + len(ends), dtype=np.int32)
        return ids[~np.isin(ids, np.asarray(ends, np.int32))][:VOCABULARY]


def uniform(low: int = 1) -> LengthFn:
    """Return a distribution in which every length from ``low`` to one too many is as likely.

    One too many, so that some completions do not come to an end.
    """
    return lambda generator, longest: int(generator.integers(low, longest + 2))


def log_normal(median: float, sigma: float) -> LengthFn:
    """Return a distribution with a long tail, as completions of reasoning models have.

    Args:
        median: Half of the completions are shorter.
        sigma: Standard deviation of the logarithm of a length.
    """
    return lambda generator, _: max(1, round(median * np.exp(sigma * generator.normal())))


def of_lengths(lengths: Sequence[int]) -> LengthFn:
    """Return the distribution of lengths that were observed; a single one is a constant."""
    observed = list(lengths)
    return lambda generator, _: int(generator.choice(observed))
