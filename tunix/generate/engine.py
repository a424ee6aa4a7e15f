"""Continuous batching: many requests, few slots, one compiled decode loop.

Tokens in, tokens and log-probabilities out; text never crosses this interface.
Requests come and go at any time, from any thread; whoever waits for tokens drives the
device. There are three programs (tiles of prompts, starting requests, the decode loop),
compiled at the first call; nothing else is ever compiled, whatever the prompts, lengths
and settings.
"""

import functools
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from flax import nnx
from jaxtyping import PRNGKeyArray

from tunix.generate import (
    completion,
    prefill,
    programs,
    requests,
    sampling_params,
    scheduler,
    weight_sync,
)
from tunix.models.transformer import decoder

MIN_SLOTS = 2
"""A matrix product with a single row falls off the fast path of CPUs."""

PREFILLS_PER_STEP = 16
"""Calls of the prefill program after which requests that run get their turn."""

OnDelta = Callable[[completion.Delta], None]
Params = sampling_params.SamplingParams | Sequence[sampling_params.SamplingParams]


class Engine:
    """Samples from a :class:`~tunix.models.transformer.decoder.Decoder`.

    What a request draws depends on its prompt, settings, key and index alone: not on what else
    runs, on its slot or on when it comes. :meth:`generate` and :meth:`stream` drive the device
    themselves, also side by side in several threads; with :meth:`add`, the caller does.
    """

    def __init__(
        self,
        model: decoder.Decoder,
        *,
        max_slots: int = 8,
        cache_size: int,
        prefill_tokens: int = 128,
        steps_per_dispatch: int = 64,
    ):
        """Copy the weights of ``model`` and allocate the cache.

        Args:
            model: Its precision is the engine's.
            max_slots: How many samples are decoded at a time.
            cache_size: How many tokens a prompt and its continuation may have together.
            prefill_tokens: Tokens of prompts that are run at a time, padding included.
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
        self._tiles = -(-prefill_tokens // prefill.TILE)
        self._max_steps = steps_per_dispatch
        self._sync = weight_sync.WeightSync(model)
        self._weights = self._sync(model)
        self._version = 0
        self._programs = programs.Programs(
            self._sync,
            slots=self._slots,
            cache_size=cache_size,
            tiles=self._tiles,
            max_steps=steps_per_dispatch,
        )

        self._ids = itertools.count()
        self._mask_of = functools.lru_cache(maxsize=8)(
            functools.partial(requests.banned_mask, vocab_size=self._vocab_size)
        )
        # One is held for moments by whoever looks at the queue, the other while the device works.
        self._lock, self._driving = threading.Lock(), threading.Lock()
        self._outbox: list[tuple[scheduler.Ticket, completion.Delta]] = []
        self._unclaimed: list[completion.Delta] = []
        self._scheduler = scheduler.Scheduler(
            slots=self._slots,
            vocab_size=self._vocab_size,
            key_words=requests.key_words(jax.random.key(0)).size,
            tile=prefill.TILE,
        )

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
        return self._programs.state_bytes

    @property
    def load(self) -> scheduler.Load:
        """How many requests wait and run."""
        with self._lock:
            return self._scheduler.load

    def sync(self, source: nnx.Module | nnx.State) -> None:
        """Replace the weights by a copy of ``source``.

        Raises:
            WeightMismatchError: If a leaf is missing, unexpected or misshapen.
            RuntimeError: If a request has a slot: what it has drawn comes from the old weights.
        """
        self._replace_weights(lambda: self._sync(source), version=self._version + 1)

    def update(self, changed: nnx.State) -> None:
        """Replace some of the weights by copies.

        Raises:
            WeightMismatchError: If a leaf is unexpected or misshapen.
            RuntimeError: If a request has a slot: what it has drawn comes from the old weights.
        """
        make = functools.partial(self._sync.update, self._weights, changed)
        self._replace_weights(make, version=self._version + 1)

    @property
    def weights(self) -> weight_sync.SamplerWeights:
        """The engine's own copy, as its programs read it."""
        return self._weights

    def hold(self, weights: weight_sync.SamplerWeights) -> None:
        """Keep the same weights in other arrays, e.g. in host memory; frees the cache, too.

        While they are not on the devices, nothing can be generated.

        Raises:
            RuntimeError: If a request has a slot, as for :meth:`sync`.
        """
        self._replace_weights(lambda: weights, version=self._version)

    def _replace_weights(
        self, make: Callable[[], weight_sync.SamplerWeights], *, version: int
    ) -> None:
        with self._driving, self._lock:
            if count := self._scheduler.load.running:
                raise RuntimeError(
                    f"{count} requests have begun with the weights that are to be replaced; take "
                    "them to their end, or abort them, first"
                )
            self._weights, self._version = make(), version
            # Weights that diverged may have left NaN, which even invisible slots would spread.
            self._programs.free()
            self._scheduler.forget_rows()

    def warmup(self) -> None:
        """Compile everything, by drawing a token."""
        params = sampling_params.SamplingParams(max_new_tokens=1)
        request = requests.Request(token_ids=[0], params=params, key=jax.random.key(0))
        completion.join(list(self.stream(request)))

    def add(self, request: requests.Request, on_delta: OnDelta | None = None) -> int:
        """Queue a request, also while another thread is in :meth:`step`; return its id.

        Args:
            request: What is wanted.
            on_delta: Gets the request's tokens as they come, in the thread that steps, instead of
                the one who called :meth:`step`. It must be quick and may not step itself.

        Raises:
            PromptError: If the prompt is empty or too long, or has an unknown id.
            ValueError: If a forbidden token or the key is none.
        """
        (prompt,) = self._checked([np.asarray(request.token_ids).tolist()], request.params)
        draws = self._draws(request.key, request.forbidden_tokens)
        ticket = scheduler.Ticket(
            id=next(self._ids), prompt=prompt, draws=draws, index=request.index, on_delta=on_delta
        )
        with self._lock:
            self._scheduler.add(ticket)
        return ticket.id

    def abort(self, request_id: int) -> bool:
        """Drop a request, which frees its slot; return whether it was still there.

        Its ``on_delta`` gets a last delta, with ``finish_reason="aborted"``.
        """
        with self._lock:
            ticket = self._scheduler.abort(request_id)
        if ticket is not None and ticket.on_delta is not None:
            ticket.on_delta(ticket.aborted(self._version))
        return ticket is not None

    def step(self) -> list[completion.Delta]:
        """Give idle slots to waiting requests, and draw up to ``steps_per_dispatch`` tokens each.

        Returns the deltas of requests that were added without ``on_delta``; an empty list if there
        was nothing to do. If it raises, the requests that were in slots are aborted, and the
        others still wait.
        """
        self._drive(lambda: False)
        with self._lock:
            found, self._unclaimed = self._unclaimed, []
        return found

    def stream(self, request: requests.Request) -> Iterator[completion.Delta]:
        """Yield a request's tokens as they come; queue it at the first ``next``.

        Closing the iterator aborts the request. One that another thread aborts, or a step of
        another thread that fails, makes for a last delta with ``finish_reason="aborted"``.

        Raises:
            PromptError: See :meth:`add`.
        """
        arrived: list[completion.Delta] = []
        request_id = self.add(request, arrived.append)
        try:
            while True:
                while not arrived:
                    self._drive(lambda: bool(arrived))
                delta = arrived.pop(0)
                yield delta
                if delta.finish_reason is not None:
                    return
        finally:
            self.abort(request_id)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: Params,
        *,
        key: PRNGKeyArray,
        num_samples: int = 1,
        forbidden_tokens: Sequence[int] = (),
    ) -> list[completion.Completion]:
        """Return ``num_samples`` completions of each prompt, in order, samples adjacent.

        Each is a request whose index is its place in this list. Same key, same completions.

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
        checked = self._checked(prompts, params)
        _check_sizes(num_samples=num_samples)
        draws = self._draws(key, forbidden_tokens)
        parts: dict[int, list[completion.Delta]] = {}
        unfinished: set[int] = set()

        def receive(delta: completion.Delta) -> None:
            parts[delta.request_id].append(delta)
            if delta.finish_reason is not None:
                unfinished.discard(delta.request_id)

        samples = [prompt for prompt in checked for _ in range(num_samples)]
        with self._lock:
            for i, (prompt, request_id) in enumerate(zip(samples, self._ids, strict=False)):
                parts[request_id] = []
                unfinished.add(request_id)
                self._scheduler.add(
                    scheduler.Ticket(
                        id=request_id, prompt=prompt, draws=draws, index=i, on_delta=receive
                    )
                )
        try:
            while unfinished:
                self._drive(lambda: not unfinished)
        finally:
            for request_id in list(unfinished):
                self.abort(request_id)
        return [completion.join(deltas) for deltas in parts.values()]

    def _checked(self, prompts: Sequence[Sequence[int]], params: Params) -> list[requests.Prompt]:
        return requests.check(
            prompts, params, cache_size=self._cache_size, vocab_size=self._vocab_size
        )

    def _draws(self, key: PRNGKeyArray, forbidden_tokens: Sequence[int]) -> scheduler.Draws:
        banned = self._mask_of(tuple(forbidden_tokens)) if len(forbidden_tokens) else None
        return scheduler.Draws(key=requests.key_words(key), banned=banned)

    def _drive(self, is_done: Callable[[], bool]) -> None:
        """Advance, unless by the time that no other thread does there is no need to."""
        with self._driving:
            if is_done():
                return
            try:
                self._advance()
            except BaseException:
                self._programs.free()
                with self._lock:
                    lost = self._scheduler.fail()
                self._outbox += [(ticket, ticket.aborted(self._version)) for ticket in lost]
                raise
            finally:
                while self._outbox:
                    ticket, delta = self._outbox.pop(0)
                    (ticket.on_delta or self._leave)(delta)

    def _leave(self, delta: completion.Delta) -> None:
        """Keep a delta for who calls :meth:`step`."""
        with self._lock:
            self._unclaimed.append(delta)

    def _advance(self) -> None:
        load = self.load
        if not (load.waiting or load.running):
            return
        for _ in range(PREFILLS_PER_STEP):
            with self._lock:
                tiles, starts = self._scheduler.refill(self._tiles)
            if tiles:
                self._programs.prefill(self._weights, tiles)
            if starts:
                self._programs.start(starts)
            if not tiles:
                break
        with self._lock:
            turn, banned = self._scheduler.turn(self._max_steps), self._scheduler.banned
        if turn is not None:
            settings = self._scheduler.settings
            reported = self._programs.decode(self._weights, settings, turn, banned)
            with self._lock:
                self._outbox += self._scheduler.record(*reported, self._version)


def _check_sizes(**sizes: int) -> None:
    if small := [f"{name}={size}" for name, size in sizes.items() if size < 1]:
        raise ValueError(f"must be at least 1: {', '.join(small)}")
