"""Which request sits in which slot, what of its prompt is in the cache, and what came out.

Host bookkeeping, without any array of the device: the engine asks what to do and reports
what happened. A slot's row of the cache begins with a prompt, which further requests of the
same prompt copy; it is kept while one of them waits, even if nothing runs in the slot.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt32

from tunix.generate import completion, decode_loop, requests, sampling_params

REFILL_FRACTION = 8
"""Waiting requests are started once one slot in this many is idle: an interruption of the loop
costs about as much as it gains below that."""

STEPS_WHILE_FILLING = 8
"""Tokens that others draw between two calls that fill a prompt too long for one turn."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Draws:
    """What requests may have in common of what decides their draws."""

    key: UInt32[np.ndarray, " W"]
    banned: Bool[np.ndarray, " V"] | None = None
    """Tokens that are never drawn; ``None`` if there are none."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Ticket:
    """A request on its way."""

    id: int
    prompt: requests.Prompt
    draws: Draws
    index: int
    on_delta: Callable[[completion.Delta], None] | None

    def delta(
        self, block: decode_loop.Block, place: tuple[int, slice], version: int, *, is_last: bool
    ) -> completion.Delta:
        """Return what a block on the host has at ``place``."""
        tokens = np.array(block.tokens[place])
        reason = None
        if is_last:
            reason = "stop" if tokens[-1] in self.prompt.params.stop_token_ids else "length"
        return completion.Delta(
            request_id=self.id,
            token_ids=tokens,
            logps=np.array(block.logps[place]),
            sampled_logps=np.array(block.sampled_logps[place]),
            version=version,
            finish_reason=reason,
        )

    def aborted(self, version: int) -> completion.Delta:
        """Return the last delta of a request that does not come to its end."""
        none = np.zeros(0, np.float32)
        return completion.Delta(
            request_id=self.id,
            token_ids=none.astype(np.int32),
            logps=none,
            sampled_logps=none,
            version=version,
            finish_reason="aborted",
        )


@dataclasses.dataclass
class _Slot:
    """A ticket in a slot."""

    ticket: Ticket
    source: int
    """The slot whose row gets the prompt: its own, or that of a request with the same one."""
    filled: int = 0
    """Tokens of the prompt in the slot's own row."""
    has_started: bool = False
    count: int = 0
    """Tokens drawn."""


class Tile(NamedTuple):
    """A piece of a prompt for a slot."""

    slot: int
    start: int
    prompt: requests.Prompt


class Start(NamedTuple):
    """A request whose prompt lies in the row of ``source``."""

    source: int
    slot: int
    length: int


class Load(NamedTuple):
    """How much there is to do."""

    waiting: int
    """Requests without a slot."""
    running: int
    """Requests in a slot."""
    held: int
    """Rows of the cache that are kept for the requests that use them, or wait for them."""


class Scheduler:
    """Slots and queue of an engine; not safe to use from several threads at once."""

    def __init__(self, *, slots: int, vocab_size: int, key_words: int, tile: int):
        """Have that many idle slots.

        Args:
            slots: How many requests run at a time.
            vocab_size: Width of the masks of forbidden tokens.
            key_words: Numbers that a key consists of.
            tile: Tokens of a :class:`Tile`.
        """
        self._waiting: dict[int, Ticket] = {}
        self._wanted: collections.Counter[bytes] = collections.Counter()
        self._slots: list[_Slot | None] = [None] * slots
        # The prompt that the slot's row begins with, or will once it is filled.
        self._held: list[requests.Prompt | None] = [None] * slots
        self._kept = np.zeros(slots, np.int32)
        self._tile = tile
        self.settings = _idle_settings(slots, key_words)
        self.banned = np.zeros((slots, vocab_size), bool)
        """What the request in each slot may not draw; replaced, never written to."""

    @property
    def load(self) -> Load:
        """How much there is to do."""
        return Load(
            waiting=len(self._waiting),
            running=len(self._slots) - len(self._idle),
            held=sum(held is not None for held in self._held),
        )

    def add(self, ticket: Ticket) -> None:
        """Queue a request."""
        self._waiting[ticket.id] = ticket
        self._wanted[ticket.prompt.identity] += 1

    def abort(self, request_id: int) -> Ticket | None:
        """Forget a request and free its slot; return it, ``None`` if it is not there."""
        if request_id in self._waiting:
            ticket = self._take(request_id)
            self._forget_unwanted_rows()
            return ticket
        for slot, taken in enumerate(self._slots):
            if taken is not None and taken.ticket.id == request_id:
                self._vacate(slot)
                return taken.ticket
        return None

    def fail(self) -> list[Ticket]:
        """Forget what is in the slots: the cache is lost. Return whose requests that were."""
        lost = [taken.ticket for taken in self._slots if taken is not None]
        self._slots = [None] * len(self._slots)
        self.forget_rows()
        return lost

    def forget_rows(self) -> None:
        """Keep no prompt: nothing is in any slot, and the cache was dropped."""
        self._held = [None] * len(self._slots)

    def refill(self, tiles: int) -> tuple[list[Tile], list[Start]]:
        """Give idle slots to waiting requests; return what to run next.

        Args:
            tiles: How many can be run at once.

        Returns:
            Tiles to run, and then the requests to start.
        """
        while self._waiting and (idle := self._idle):
            self._place(self._take(next(iter(self._waiting))), idle)
        return self._next_tiles(tiles), list(self._next_starts())

    def turn(self, max_steps: int) -> decode_loop.Turn | None:
        """Return what to ask of the decode loop, ``None`` if nothing runs."""
        started = np.array([taken is not None and taken.has_started for taken in self._slots])
        if not started.any():
            return None
        self._forget_unwanted_rows()
        for slot, (taken, held) in enumerate(zip(self._slots, self._held, strict=True)):
            if taken is not None and not taken.has_started:
                self._kept[slot] = taken.filled
            else:
                self._kept[slot] = len(held.token_ids) if held and self._is_wanted(held) else 0
        slots = len(self._slots)
        unstarted = self.load.running - int(started.sum())
        at_idle = unstarted + max(1, slots // REFILL_FRACTION) if self._waiting else slots
        if unstarted:
            max_steps = min(max_steps, STEPS_WHILE_FILLING)
        return decode_loop.Turn(
            occupied=started,
            idle_lengths=self._kept.copy(),
            return_at_idle=np.array(min(at_idle, slots), np.int32),
            max_steps=np.array(max_steps, np.int32),
        )

    def record(
        self,
        block: decode_loop.Block,
        counts: Int[np.ndarray, " B"],
        active: Bool[np.ndarray, " B"],
        version: int,
    ) -> list[tuple[Ticket, completion.Delta]]:
        """Return the tokens of a block, which lies on the host; free the slots that ended."""
        found = []
        for slot, taken in enumerate(self._slots):
            if taken is None or not taken.has_started:
                continue
            place = slot, slice(0, int(counts[slot]) - taken.count)
            taken.count = int(counts[slot])
            is_last = not active[slot]
            found.append((taken.ticket, taken.ticket.delta(block, place, version, is_last=is_last)))
            if is_last:
                self._slots[slot] = None
                if not self._kept[slot]:
                    self._held[slot] = None
        self._forget_unwanted_rows()
        return found

    @property
    def _idle(self) -> list[int]:
        return [slot for slot, taken in enumerate(self._slots) if taken is None]

    def _take(self, request_id: int) -> Ticket:
        """Take a request out of the queue."""
        ticket = self._waiting.pop(request_id)
        identity = ticket.prompt.identity
        self._wanted[identity] -= 1
        if not self._wanted[identity]:
            del self._wanted[identity]
        return ticket

    def _place(self, ticket: Ticket, idle: list[int]) -> None:
        """Give a request an idle slot, if possible one whose row has its prompt."""
        prompt = ticket.prompt
        same = [s for s, h in enumerate(self._held) if h and h.identity == prompt.identity]
        in_place = [slot for slot in same if self._slots[slot] is None]
        if in_place:
            slot = source = in_place[0]
        else:
            # What others wait for is overwritten last.
            slot = min(idle, key=lambda s: self._is_wanted(self._held[s]))
            source = same[0] if same else slot
            self._held[slot] = None if same else prompt
        filled = len(prompt.token_ids) if in_place else 0
        self._slots[slot] = _Slot(ticket=ticket, source=source, filled=filled)
        self._set(slot, ticket)

    def _next_tiles(self, most: int) -> list[Tile]:
        """Return the next tiles of the prompts being filled, one of each in turn."""
        filling = collections.deque(
            (slot, taken)
            for slot, taken in enumerate(self._slots)
            if taken and taken.source == slot and taken.filled < len(taken.ticket.prompt.token_ids)
        )
        tiles = []
        while filling and len(tiles) < most:
            slot, taken = filling.popleft()
            prompt = taken.ticket.prompt
            tiles.append(Tile(slot, taken.filled, prompt))
            taken.filled = min(taken.filled + self._tile, len(prompt.token_ids))
            if taken.filled < len(prompt.token_ids):
                filling.append((slot, taken))
        return tiles

    def _next_starts(self) -> Iterator[Start]:
        """Start the requests whose prompt is complete, in their own or another row."""
        for slot, taken in enumerate(self._slots):
            if taken is None or taken.has_started:
                continue
            prompt, source = taken.ticket.prompt, self._slots[taken.source]
            if source is not None and source.filled == len(prompt.token_ids):
                taken.has_started, taken.filled = True, source.filled
                self._held[slot] = prompt
                yield Start(taken.source, slot, source.filled)

    def _vacate(self, slot: int) -> None:
        """Free a slot; a prompt that is being filled goes on for another that waits for it."""
        gone = self._slots[slot]
        self._slots[slot] = self._held[slot] = None
        for other, taken in enumerate(self._slots):
            if gone and taken and not taken.has_started and taken.source == slot:
                self._slots[other] = None
                self._slots[slot] = dataclasses.replace(gone, ticket=taken.ticket)
                self._held[slot] = taken.ticket.prompt
                self._set(slot, taken.ticket)
                return

    def _is_wanted(self, held: requests.Prompt | None) -> bool:
        return held is not None and held.identity in self._wanted

    def _forget_unwanted_rows(self) -> None:
        for slot, held in enumerate(self._held):
            if self._slots[slot] is None and not self._is_wanted(held):
                self._held[slot] = None

    def _set(self, slot: int, ticket: Ticket) -> None:
        """Write a request's settings into the host arrays."""
        params, settings = ticket.prompt.params, self.settings
        settings.temperature[slot] = params.temperature
        settings.top_k[slot] = 0 if params.top_k is None else params.top_k
        settings.top_p[slot] = 1.0 if params.top_p is None else params.top_p
        settings.min_p[slot] = 0.0 if params.min_p is None else params.min_p
        settings.repetition_penalty[slot] = params.repetition_penalty
        settings.stop_ids[slot] = decode_loop.NO_TOKEN
        settings.stop_ids[slot, : len(params.stop_token_ids)] = params.stop_token_ids
        settings.max_new_tokens[slot] = params.max_new_tokens
        settings.keys[slot] = ticket.draws.key
        settings.index[slot] = ticket.index
        banned = False if ticket.draws.banned is None else ticket.draws.banned
        if (self.banned[slot] != banned).any():
            self.banned = self.banned.copy()
            self.banned[slot] = banned


def _idle_settings(slots: int, key_words: int) -> decode_loop.SlotSettings:
    """Return writable host arrays for slots that ask for nothing."""
    return decode_loop.SlotSettings(
        temperature=np.zeros(slots, np.float32),
        top_k=np.zeros(slots, np.int32),
        top_p=np.ones(slots, np.float32),
        min_p=np.zeros(slots, np.float32),
        repetition_penalty=np.ones(slots, np.float32),
        stop_ids=np.full((slots, sampling_params.MAX_STOP_TOKENS), decode_loop.NO_TOKEN, np.int32),
        max_new_tokens=np.zeros(slots, np.int32),
        keys=np.zeros((slots, key_words), np.uint32),
        index=np.zeros(slots, np.int32),
    )
