"""The compiled programs of an engine and the state that they hand on; all that is on devices."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Bool

from tunix.generate import decode_loop, prefill, scheduler, weight_sync
from tunix.perf import machine
from tunix.utils import tree


class Programs:
    """Three programs: tiles of prompts, starting requests, and the decode loop.

    The state is donated from call to call: after a call that failed there is none, and the
    next call begins with an empty one.
    """

    def __init__(
        self,
        sync: weight_sync.WeightSync,
        *,
        slots: int,
        cache_size: int,
        tiles: int,
        max_steps: int,
    ):
        """Prepare programs, each of which compiles at its first call.

        Args:
            sync: Knows the model.
            slots: Requests that run at a time.
            cache_size: Tokens of a request.
            tiles: Pieces of prompts that are run at a time.
            max_steps: Length of a block.

        Raises:
            ValueError: If the state is larger than the memory.
        """
        self._slots, self._tiles = slots, tiles
        self._state: decode_loop.DecodeState | None = None
        self._banned: tuple[Bool[np.ndarray, "B V"], jax.Array] | None = None
        graphdef = sync.graphdef

        def run_prefill(weights, state, *arrays) -> decode_loop.DecodeState:
            return prefill.prefill(nnx.merge(graphdef, weights.state), state, *arrays)

        def decode(weights, state, settings, turn, banned):
            model = nnx.merge(graphdef, weights.state)
            head = model.output_head()
            if weights.head is not None:
                head = head.replace(weight=weights.head)
            return decode_loop.decode_block(
                model, head, state, settings, turn, banned=banned, steps=max_steps
            )

        self._empty_state = jax.jit(
            functools.partial(
                decode_loop.empty_state,
                sync.config,
                slots=slots,
                cache_size=cache_size,
                dtype=sync.cache_dtype,
            )
        )
        self._prefill = jax.jit(run_prefill, donate_argnums=1)
        self._start = jax.jit(prefill.start, donate_argnums=0)
        self._decode = jax.jit(decode, donate_argnums=1)
        self.state_bytes = tree.num_bytes(jax.eval_shape(self._empty_state))
        """What keys, values and all else that is kept between calls take."""
        _require_memory(self.state_bytes, slots, cache_size)

    def free(self) -> None:
        """Drop the state."""
        self._state = self._banned = None

    def prefill(self, weights: weight_sync.SamplerWeights, tiles: Sequence[scheduler.Tile]) -> None:
        """Run pieces of prompts into the rows of their slots."""
        tokens = np.zeros((self._tiles, prefill.TILE), np.int32)
        slots = np.full(self._tiles, self._slots, np.int32)
        # Unused tiles are in nobody's row, and read no more of the cache than the others.
        starts = np.full(self._tiles, tiles[0].start, np.int32)
        ends = np.zeros(self._tiles, np.int32)
        for i, tile in enumerate(tiles):
            ids = tile.prompt.token_ids
            piece = ids[tile.start : tile.start + prefill.TILE]
            tokens[i, : len(piece)] = piece
            slots[i], starts[i], ends[i] = tile.slot, tile.start, len(ids)
        self._state = self._prefill(weights, self._take(), tokens, slots, starts, ends)

    def start(self, starts: Sequence[scheduler.Start]) -> None:
        """Start requests whose prompts are in the cache."""
        arrays = np.zeros((3, self._slots), np.int32)
        arrays[:, : len(starts)] = np.transpose(starts)
        self._state = self._start(self._take(), *arrays, np.int32(len(starts)))

    def decode(
        self,
        weights: weight_sync.SamplerWeights,
        settings: decode_loop.SlotSettings,
        turn: decode_loop.Turn,
        banned: Bool[np.ndarray, "B V"],
    ) -> tuple[decode_loop.Block, Any, Any]:
        """Draw tokens; return them with counts and activity of all slots, on the host.

        Args:
            weights: To sample with.
            settings: Of the requests in the slots.
            turn: What is wanted of this block.
            banned: What each slot may not draw; sent to the devices if it is another array.
        """
        if self._banned is None or self._banned[0] is not banned:
            self._banned = banned, jnp.asarray(banned)
        state, block = self._decode(weights, self._take(), settings, turn, self._banned[1])
        # The one transfer to the host: everything a block produced, at once.
        reported = jax.device_get((block, state.counts, state.active))
        self._state = state
        return reported

    def _take(self) -> decode_loop.DecodeState:
        """Take the state away while it is in use."""
        state, self._state = self._state or self._empty_state(), None
        return state


def _require_memory(needed: int, slots: int, cache_size: int) -> None:
    """Raise if there is no room for what sampling holds, instead of running out of memory."""
    limit = machine.device_bytes_limit()
    free = machine.host_bytes_available() if limit is None else limit * jax.device_count()
    if free is not None and needed > free:
        raise ValueError(
            f"sampling {slots} completions at a time, of up to {cache_size:,} tokens with their "
            f"prompts, holds {needed / 1e9:,.1f} GB, and there are {free / 1e9:,.1f}; allow fewer "
            "tokens (total_generation_steps, --max-new-tokens), shorter prompts, or fewer at a time"
        )
