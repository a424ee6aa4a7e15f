"""Pytrees as flat tables of dotted names: what checkpoints store and messages print."""

import math
from collections.abc import Mapping
from typing import Any

import jax
from jax import tree_util


def path_name(path: tuple[Any, ...]) -> str:
    """Return the dotted name of a key path as ``jax.tree_util`` gives it."""
    return tree_util.keystr(path, simple=True, separator=".")


def named_leaves(tree: Any) -> dict[str, Any]:
    """Return every leaf under its dotted name, in tree order.

    Raises:
        ValueError: If two leaves share a name, e.g. ``{"a.b": 1, "a": {"b": 2}}``.
    """
    named: dict[str, Any] = {}
    for path, leaf in tree_util.tree_leaves_with_path(tree):
        name = path_name(path)
        if name in named:
            raise ValueError(f"two leaves of the tree are both named {name!r}; rename one key")
        named[name] = leaf
    return named


def with_leaves(tree: Any, named: Mapping[str, Any]) -> Any:
    """Return ``tree`` with every leaf replaced by the value of its name in ``named``."""
    return jax.tree.map_with_path(lambda path, _: named[path_name(path)], tree)


def num_bytes(tree: Any) -> int:
    """Return the bytes that the arrays of ``tree`` hold, counted over all devices once."""
    leaves = jax.tree.leaves(tree)
    return sum(
        math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves if isinstance(leaf, _ARRAYS)
    )


def num_elements(tree: Any) -> int:
    """Return the number of array elements of ``tree``: the parameter count of a state."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.shape) for leaf in leaves if isinstance(leaf, _ARRAYS))


_ARRAYS = (jax.Array, jax.ShapeDtypeStruct)
