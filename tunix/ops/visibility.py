"""Who sees whom among the tokens of rows: one value from the batch to the kernels, and its rule.

Nothing here knows models or kernels. Axes: ``B`` rows, ``T`` tokens.
"""

import typing
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


@typing.no_type_check  # pytree operations put anything in place of the arrays
@flax.struct.dataclass
class Visibility:
    """Where the tokens of rows stand and what each may see; ``None`` leaves a rule out.

    Query ``i`` sees key ``j`` iff ``order[j] <= order[i]`` and every given rule holds: they are in
    the same segment, or ``j`` is in the segment that ``i`` names as its prefix; in a layer with a
    window, ``positions[i] - positions[j] < window``; ``mask[i, j]``. Tokens of one span see each
    other in spite of order and window, not of the other rules. Segment 0 is padding: it sees
    nothing and is not seen.

    Nothing depends on where in its row a token lies: tokens may be permuted, and rows cut, together
    with their visibility.
    """

    positions: Int[Array, "B T"] | None = None
    """What is rotated, and what a window counts; ``None`` means the order."""
    segment_ids: Int[Array, "B T"] | None = None
    """Which sequence of a packed row each token belongs to; ``None`` means one."""
    prefix_ids: Int[Array, "B T"] | None = None
    """A second segment that each token sees, such as the prompt that several completions share; 0
    for none. Needs ``segment_ids``."""
    span_ids: Int[Array, "B T"] | None = None
    """Spans within which attention has no direction, 0 for none: an image's tokens."""
    order: Int[Array, "B T"] | None = None
    """Which token comes before which; ``None`` means as they lie in the row."""
    mask: Bool[Array, "B T T"] | None = None
    """A further restriction of what is visible."""

    @property
    def restrictions(self) -> list[str]:
        """The rules besides order in the row, and besides what only a window reads."""
        names = ("segment_ids", "prefix_ids", "span_ids", "order", "mask")
        return [name for name in names if getattr(self, name) is not None]

    def side(self, places: Int[Array, "#B T"], axis: int) -> "Side":
        """Return these tokens, which lie at ``places``, as one side of pairs.

        Args:
            places: Where in their rows the tokens lie.
            axis: Where the other side of the pairs has its tokens.
        """
        order = places if self.order is None else self.order
        ids = (self.segment_ids, self.prefix_ids, self.span_ids)
        return Side(
            jnp.expand_dims(order, axis),
            jnp.expand_dims(order if self.positions is None else self.positions, axis),
            *(None if x is None else jnp.expand_dims(x, axis) for x in ids),
        )

    def positions_in(self, shape: tuple[int, ...]) -> Int[Array, "B T"]:
        """Return the position of each token of rows of this shape."""
        places = jnp.arange(shape[1], dtype=jnp.int32)
        given = (x for x in (self.positions, self.order) if x is not None)
        return jnp.broadcast_to(next(given, places), shape)

    def pairs(
        self, shape: tuple[int, ...], *, window: int | Int[Array, ""] | None = None
    ) -> Bool[Array, "B T T"]:
        """Return whether query ``i`` sees key ``j`` in rows of this shape."""
        places = jnp.arange(shape[1], dtype=jnp.int32)[None]
        seen = sees(self.side(places, -1), self.side(places, -2), window=window)
        if self.mask is not None:
            seen = seen & self.mask
        return jnp.broadcast_to(seen, (*shape, shape[1]))

    def dense_mask(self, shape: tuple[int, ...]) -> Bool[Array, "B T T"]:
        """Return :meth:`pairs` for modules that take nothing else, without blind queries."""
        return without_blind(self.pairs(shape))


class Side(NamedTuple):
    """Tokens on one side of pairs, with an axis of size one where the other side has its own."""

    order: Array
    positions: Array
    segment_ids: Array | None
    prefix_ids: Array | None
    span_ids: Array | None


def sees(
    queries: Side, keys: Side, *, window: jax.typing.ArrayLike | None = None
) -> Bool[Array, "..."]:
    """Return for all pairs whether the query sees the key, for all rules but ``mask``.

    Args:
        queries: One side of the pairs.
        keys: The other.
        window: How many latest positions are visible, the query's own included; may be traced.
    """
    seen = keys.order <= queries.order
    if window is not None:
        seen = seen & (queries.positions - keys.positions < window)
    if queries.span_ids is not None and keys.span_ids is not None:
        seen = seen | ((queries.span_ids == keys.span_ids) & (queries.span_ids != 0))
    if queries.segment_ids is not None and keys.segment_ids is not None:
        together = keys.segment_ids == queries.segment_ids
        if queries.prefix_ids is not None:
            together |= keys.segment_ids == queries.prefix_ids
        seen = seen & together & (queries.segment_ids != 0) & (keys.segment_ids != 0)
    return seen


def without_blind(seen: Bool[Array, "B T T"]) -> Bool[Array, "B T T"]:
    """Return the same where queries that see nothing, such as padding, see themselves.

    A softmax over nothing is NaN.
    """
    return seen | (~seen.any(axis=-1, keepdims=True) & jnp.eye(seen.shape[-1], dtype=jnp.bool_))
