"""Continuous batching: many requests, few slots, one compiled decode loop.

Tokens in, tokens and log-probabilities out; text never crosses this interface.
Prompts are prefilled in batches of one bucket of lengths, samples of a group share
the prefill, and finished slots are refilled while the others go on. There is one
program for the decode loop and two (prefill, copy to slots) for each bucket in use;
nothing else is ever compiled, whatever the prompts, lengths and settings.
"""

from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx
from jaxtyping import PRNGKeyArray

from tunix.generate import (
    completion,
    decode_loop,
    prefill,
    requests,
    sampling_params,
    scheduler,
    weight_sync,
)
from tunix.models.transformer import decoder
from tunix.perf import machine
from tunix.utils import tree

MIN_SLOTS = 2
"""A matrix product with a single row falls off the fast path of CPUs."""


class Engine:
    """Samples from a :class:`~tunix.models.transformer.decoder.Decoder`."""

    def __init__(
        self,
        model: decoder.Decoder,
        *,
        max_slots: int = 8,
        cache_size: int,
        prefill_tokens: int = 256,
        steps_per_dispatch: int = 64,
    ):
        """Copy the weights of ``model`` and allocate the cache.

        Args:
            model: Its precision is the engine's.
            max_slots: How many samples are decoded at a time.
            cache_size: How many tokens a prompt and its continuation may have together.
            prefill_tokens: Size of a prefill batch, padding included: so many prompts of a
                bucket are run at a time, and always at least one.
            steps_per_dispatch: How many tokens a slot draws before the host looks at them;
                the loop returns earlier where there is reason to.

        Raises:
            ValueError: If a size is less than 1, or the cache is larger than the memory.
        """
        _check_sizes(
            max_slots=max_slots,
            cache_size=cache_size,
            prefill_tokens=prefill_tokens,
            steps_per_dispatch=steps_per_dispatch,
        )
        self._slots = max(max_slots, MIN_SLOTS)
        self._cache_size, self._vocab_size = cache_size, model.config.vocab_size
        self._prefill_rows = {
            bucket: max(1, prefill_tokens // bucket) for bucket in prefill.buckets(cache_size)
        }
        self._sync = weight_sync.WeightSync(model)
        self._weights = self._sync(model)
        self._version = 0

        self._state: decode_loop.DecodeState | None = None
        graphdef, dtype = self._sync.graphdef, self._sync.cache_dtype

        def empty_state() -> decode_loop.DecodeState:
            config = self._sync.config
            return decode_loop.empty_state(
                config, slots=self._slots, cache_size=cache_size, dtype=dtype
            )

        def run_prefill(weights, tokens, lengths) -> prefill.Prefilled:
            model = nnx.merge(graphdef, weights.state)
            return prefill.prefill(model, tokens, lengths, dtype=dtype)

        def decode(weights, state, settings, key, banned, return_at_idle):
            model = nnx.merge(graphdef, weights.state)
            head = model.output_head()
            if weights.head is not None:
                head = head.replace(weight=weights.head)
            return decode_loop.decode_block(
                model,
                head,
                state,
                settings,
                key=key,
                banned=banned,
                return_at_idle=return_at_idle,
                steps=steps_per_dispatch,
            )

        _require_memory(jax.eval_shape(empty_state), self._slots, cache_size)
        self._empty_state = jax.jit(empty_state)
        self._prefill = jax.jit(run_prefill)
        self._insert = jax.jit(prefill.insert, donate_argnums=0)
        self._decode = jax.jit(decode, donate_argnums=1)

    @property
    def version(self) -> int:
        """How often the weights were replaced."""
        return self._version

    @property
    def cache_size(self) -> int:
        """How many tokens a prompt and its continuation may have together."""
        return self._cache_size

    @property
    def cache_bytes(self) -> int:
        """What keys, values and all else that is kept between steps take."""
        leaves = jax.tree.leaves(jax.eval_shape(self._empty_state))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)

    def sync(self, source: nnx.Module | nnx.State) -> None:
        """Replace the weights by a copy of ``source``; takes effect at the next ``generate``.

        Raises:
            WeightMismatchError: If a leaf is missing, unexpected or misshapen.
        """
        self._weights = self._sync(source)
        self._version += 1
        # Weights that diverged may have left NaN, which even invisible slots would spread.
        self._state = None

    def update(self, changed: nnx.State) -> None:
        """Replace some of the weights by copies; takes effect at the next ``generate``.

        Raises:
            WeightMismatchError: If a leaf is unexpected or misshapen.
        """
        self._weights = self._sync.update(self._weights, changed)
        self._version += 1
        self._state = None

    @property
    def weights(self) -> weight_sync.SamplerWeights:
        """The engine's own copy, as its programs read it."""
        return self._weights

    def hold(self, weights: weight_sync.SamplerWeights) -> None:
        """Keep the same weights in other arrays, e.g. in host memory; frees the cache, too.

        While they are not on the devices, nothing can be generated.
        """
        self._weights, self._state = weights, None

    def warmup(self, prompt_lengths: Sequence[int] | None = None) -> None:
        """Compile what prompts of these lengths need; by default, of every length.

        Args:
            prompt_lengths: Lengths to expect.
        """
        if prompt_lengths is None:
            prompt_lengths = [min(b, self._cache_size - 1) for b in self._prefill_rows]
        params = sampling_params.SamplingParams(max_new_tokens=1)
        # A call for each: together, the shorter ones could wait for slots of the longer.
        for length in sorted(set(prompt_lengths)):
            self.generate([[0] * length], params, key=jax.random.key(0))

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: sampling_params.SamplingParams | Sequence[sampling_params.SamplingParams],
        *,
        key: PRNGKeyArray,
        num_samples: int = 1,
        forbidden_tokens: Sequence[int] = (),
    ) -> list[completion.Completion]:
        """Return ``num_samples`` completions of each prompt, in order, samples adjacent.

        The draws of a sample depend on its index in this list and on its prompt and
        settings, not on its slot or on what else is running. Same key, same completions.

        Args:
            prompts: Token ids of each prompt.
            params: Settings of all prompts, or one for each.
            key: Used once, here.
            num_samples: Samples of each prompt, which is prefilled once for all of them.
            forbidden_tokens: Ids that are never drawn.

        Raises:
            PromptError: Listing every prompt that is empty or too long, before anything runs.
            ValueError: If ``num_samples`` is less than 1 or an id is not in the vocabulary.
        """
        checked = requests.check(
            prompts, params, cache_size=self._cache_size, vocab_size=self._vocab_size
        )
        _check_sizes(num_samples=num_samples)
        plan = scheduler.Scheduler(
            checked, num_samples=num_samples, slots=self._slots, buckets=list(self._prefill_rows)
        )
        banned = requests.banned_mask(forbidden_tokens, self._vocab_size)
        # Taken away while in use: a call that fails leaves a donated, unusable state behind.
        state, self._state = self._state or self._empty_state(), None
        while not plan.is_done:
            state = self._refill(plan, checked, state)
            state, block = self._decode(
                self._weights, state, plan.settings, key, banned, np.int32(plan.return_at_idle)
            )
            # The one transfer to the host: everything a block produced, at once.
            plan.record(*jax.device_get((block, state.counts, state.active)))
        self._state = state
        return plan.completions

    def _refill(
        self,
        plan: scheduler.Scheduler,
        prompts: Sequence[requests.Prompt],
        state: decode_loop.DecodeState,
    ) -> decode_loop.DecodeState:
        """Start samples until no slot is idle or none waits."""
        while True:
            if batch := plan.next_prefill(self._prefill_rows):
                bucket, members = batch
                tokens, lengths = requests.pad(
                    [prompts[i] for i in members], rows=self._prefill_rows[bucket], size=bucket
                )
                plan.add_prefilled(self._prefill(self._weights, tokens, lengths), members)
            placed = plan.start()
            if not placed:
                return state
            rows, slots = np.zeros((2, self._slots), np.int32)
            rows[: len(placed)] = [sample.row for _, sample in placed]
            slots[: len(placed)] = [slot for slot, _ in placed]
            prefilled = placed[0][1].prefilled
            state = self._insert(state, prefilled, rows, slots, np.int32(len(placed)))


def _require_memory(state: decode_loop.DecodeState, slots: int, cache_size: int) -> None:
    """Raise if there is no room for what sampling holds, instead of running out of memory."""
    limit = machine.device_bytes_limit()
    free = machine.host_bytes_available() if limit is None else limit * jax.device_count()
    needed = tree.num_bytes(state)
    if free is not None and needed > free:
        raise ValueError(
            f"sampling {slots} completions at a time, of up to {cache_size:,} tokens with their "
            f"prompts, holds {needed / 1e9:,.1f} GB, and there are {free / 1e9:,.1f}; allow fewer "
            "tokens (total_generation_steps, --max-new-tokens), shorter prompts, or fewer at a time"
        )


def _check_sizes(**sizes: int) -> None:
    if small := [f"{name}={size}" for name, size in sizes.items() if size < 1]:
        raise ValueError(f"must be at least 1: {', '.join(small)}")
