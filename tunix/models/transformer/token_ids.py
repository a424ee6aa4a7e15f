"""Token ids are rows of the embedding: an id that is no row of it has no meaning to the model.

Compiled programs read the nearest row instead, or the last ones for negative ids, and train on with
a finite loss. So what comes from outside is checked on the host: prompts and batches of tokens.
"""

from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Int

from tunix.models.transformer import decoder
from tunix.utils import tree as tree_lib

_READ = ("input_tokens", "tokens", "input_ids")
_PREDICTED = "targets"
_SEGMENTS = "segment_ids"
MOST_SHOWN = 5


class TokenIdError(ValueError):
    """Tokens for which a model has no embedding."""


def num_embeddings(model: nnx.Module) -> int | None:
    """Return how many token ids ``model`` knows; ``None`` if it holds no decoder of ours."""
    found = [m.num_embed for _, m in nnx.iter_modules(model) if isinstance(m, decoder.Decoder)]
    return min(found, default=None)


def outside(ids: Any, size: int) -> Int[np.ndarray, " N"]:
    """Return the ids that are not in ``[0, size)``, each once."""
    array = np.asarray(ids).reshape(-1)
    return np.unique(array[(array < 0) | (array >= size)])


def require(batch: Any, size: int | None) -> None:
    """Check the token ids of a batch: its leaves named ``input_tokens``, ``tokens`` or ``targets``.

    Padding is not looked at, where ``segment_ids`` beside them are 0, nor are negative targets,
    which stand for none in losses of others.

    Args:
        batch: Any tree of arrays on the host or one device.
        size: How many embeddings the model has; ``None`` checks nothing.

    Raises:
        TokenIdError: Naming each leaf with such ids, and the first of them.
    """
    if size is None:
        return
    leaves = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        leaves.setdefault(tree_lib.path_name(path[:-1]), {})[tree_lib.path_name(path[-1:])] = leaf
    problems = []
    for owner, fields in leaves.items():
        for name in (*_READ, _PREDICTED):
            if not _is_readable(fields.get(name)):
                continue
            ids, segments = np.asarray(fields[name]), fields.get(_SEGMENTS)
            if _is_readable(segments) and segments.shape == ids.shape:
                ids = ids[np.asarray(segments) != 0]
            bad = outside(ids[ids >= 0] if name == _PREDICTED else ids, size)
            if bad.size:
                where = f"{owner}.{name}" if owner else name
                problems.append(f"{where} holds token ids {shown(bad)}")
    if problems:
        raise TokenIdError(f"{'; '.join(problems)}, {unknown(size)}")


def shown(ids: Int[np.ndarray, " N"]) -> str:
    """Return the first of some ids as a list, and how many more there are."""
    more = len(ids) - MOST_SHOWN
    return f"{ids[:MOST_SHOWN].tolist()}" + (f" and {more} more" if more > 0 else "")


def unknown(size: int) -> str:
    """Return the end of a sentence that names ids which are not in ``[0, size)``."""
    return (
        f"and the model has embeddings of 0 to {size - 1} only; use the tokenizer that the model "
        "was made with, or a model whose embeddings were resized for the added tokens"
    )


def _is_readable(leaf: Any) -> bool:
    """Return whether a leaf is an array of integers that this host holds in full."""
    if isinstance(leaf, jax.Array):
        return leaf.is_fully_addressable and np.issubdtype(leaf.dtype, np.integer)
    return isinstance(leaf, np.ndarray) and np.issubdtype(leaf.dtype, np.integer)
