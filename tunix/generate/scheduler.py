"""Which prompt is prefilled next, which sample sits in which slot, and what came out.

Host bookkeeping of one ``generate`` call, without any array of the device: the
engine asks what to do and reports what happened.
"""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from tunix.generate import completion, decode_loop, requests, sampling_params

REFILL_FRACTION = 8
"""Waiting samples are started once one slot in this many is idle: an interruption of the loop
costs about as much as it gains below that."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ready:
    """A sample whose prompt is prefilled."""

    prefilled: Any
    """What the engine stored it in; opaque here."""
    row: int
    request: int
    params: sampling_params.SamplingParams


@dataclasses.dataclass
class _Running:
    """A sample in a slot, and its tokens so far."""

    sample: Ready
    tokens: list[Int[np.ndarray, " T"]] = dataclasses.field(default_factory=list)
    logps: list[Float[np.ndarray, " T"]] = dataclasses.field(default_factory=list)
    sampled_logps: list[Float[np.ndarray, " T"]] = dataclasses.field(default_factory=list)
    count: int = 0

    def finish(self) -> completion.Completion:
        tokens = np.concatenate(self.tokens)
        stopped = tokens[-1] in self.sample.params.stop_token_ids
        return completion.Completion(
            token_ids=tokens,
            logps=np.concatenate(self.logps),
            sampled_logps=np.concatenate(self.sampled_logps),
            finish_reason="stop" if stopped else "length",
        )


class Scheduler:
    """Slots, queues and results of one call."""

    def __init__(
        self,
        prompts: Sequence[requests.Prompt],
        *,
        num_samples: int,
        slots: int,
        buckets: Sequence[int],
    ):
        """Queue ``num_samples`` samples of each prompt, by the smallest bucket that holds it."""
        self._prompts, self._num_samples = prompts, num_samples
        self._running: list[_Running | None] = [None] * slots
        self._ready: collections.deque[Ready] = collections.deque()
        self._waiting: dict[int, collections.deque[int]] = {
            bucket: collections.deque() for bucket in buckets
        }
        for i, prompt in enumerate(prompts):
            bucket = min(b for b in buckets if b >= len(prompt.token_ids))
            self._waiting[bucket].append(i)
        self._completions: list[completion.Completion | None] = [None] * (
            len(prompts) * num_samples
        )
        self._settings = _idle_settings(slots)

    @property
    def is_done(self) -> bool:
        """Whether every sample is complete."""
        return not (self._has_pending or any(self._running))

    @property
    def settings(self) -> decode_loop.SlotSettings:
        """What the samples in the slots ask for."""
        return self._settings

    @property
    def completions(self) -> list[completion.Completion]:
        """The results, prompt by prompt; call when done."""
        return [done for done in self._completions if done is not None]

    @property
    def idle_slots(self) -> list[int]:
        """Slots that could take a sample."""
        return [slot for slot, running in enumerate(self._running) if running is None]

    @property
    def return_at_idle(self) -> int:
        """How many slots must be idle before the decode loop is worth interrupting."""
        slots = len(self._running)
        return max(1, slots // REFILL_FRACTION) if self._has_pending else slots

    def next_prefill(self, batch_size_of: dict[int, int]) -> tuple[int, list[int]] | None:
        """Return a bucket and prompts for it, if slots are idle and no prefilled sample waits."""
        if self._ready or not self.idle_slots:
            return None
        for bucket, waiting in self._waiting.items():
            if waiting:
                size = min(batch_size_of[bucket], len(waiting))
                return bucket, [waiting.popleft() for _ in range(size)]
        return None

    def add_prefilled(self, prefilled: Any, prompts: Sequence[int]) -> None:
        """Queue all samples of prompts that lie in the rows of ``prefilled``, in order."""
        for row, prompt in enumerate(prompts):
            for sample in range(self._num_samples):
                self._ready.append(
                    Ready(
                        prefilled=prefilled,
                        row=row,
                        request=prompt * self._num_samples + sample,
                        params=self._prompts[prompt].params,
                    )
                )

    def start(self) -> list[tuple[int, Ready]]:
        """Place ready samples of one prefill in idle slots; return ``(slot, sample)`` pairs."""
        placed: list[tuple[int, Ready]] = []
        for slot in self.idle_slots:
            if not self._ready:
                break
            if placed and self._ready[0].prefilled is not placed[0][1].prefilled:
                break
            sample = self._ready.popleft()
            self._running[slot] = _Running(sample)
            _set_slot(self._settings, slot, sample)
            placed.append((slot, sample))
        return placed

    def record(
        self,
        block: decode_loop.Block,
        counts: Int[np.ndarray, " B"],
        active: Bool[np.ndarray, " B"],
    ) -> None:
        """Take over the tokens of a block, which lies on the host; free the slots that ended."""
        for slot, running in enumerate(self._running):
            if running is None:
                continue
            new = int(counts[slot]) - running.count
            running.count += new
            running.tokens.append(np.array(block.tokens[slot, :new]))
            running.logps.append(np.array(block.logps[slot, :new]))
            running.sampled_logps.append(np.array(block.sampled_logps[slot, :new]))
            if not active[slot]:
                self._completions[running.sample.request] = running.finish()
                self._running[slot] = None

    @property
    def _has_pending(self) -> bool:
        return bool(self._ready) or any(self._waiting.values())


def _idle_settings(slots: int) -> decode_loop.SlotSettings:
    """Return writable host arrays for slots that ask for nothing."""
    return decode_loop.SlotSettings(
        temperature=np.zeros(slots, np.float32),
        top_k=np.zeros(slots, np.int32),
        top_p=np.ones(slots, np.float32),
        min_p=np.zeros(slots, np.float32),
        repetition_penalty=np.ones(slots, np.float32),
        stop_ids=np.full((slots, sampling_params.MAX_STOP_TOKENS), decode_loop.NO_TOKEN, np.int32),
        max_new_tokens=np.zeros(slots, np.int32),
        request=np.zeros(slots, np.int32),
    )


def _set_slot(settings: decode_loop.SlotSettings, slot: int, sample: Ready) -> None:
    """Write a sample's settings into the host arrays."""
    params = sample.params
    settings.temperature[slot] = params.temperature
    settings.top_k[slot] = 0 if params.top_k is None else params.top_k
    settings.top_p[slot] = 1.0 if params.top_p is None else params.top_p
    settings.min_p[slot] = 0.0 if params.min_p is None else params.min_p
    settings.repetition_penalty[slot] = params.repetition_penalty
    settings.stop_ids[slot] = decode_loop.NO_TOKEN
    settings.stop_ids[slot, : len(params.stop_token_ids)] = params.stop_token_ids
    settings.max_new_tokens[slot] = params.max_new_tokens
    settings.request[slot] = sample.request
