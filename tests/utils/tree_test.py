"""Trees as tables of dotted names."""

import collections

import jax
import jax.numpy as jnp
import pytest

from tunix.utils import tree

Pair = collections.namedtuple("Pair", ["count", "mu"])


def test_names_are_dotted_paths_through_all_kinds_of_nodes():
    nested = {"opt": (Pair(1, {"layers.0.w": 2}), [3])}
    assert tree.named_leaves(nested) == {
        "opt.0.count": 1, "opt.0.mu.layers.0.w": 2, "opt.1.0": 3
    }  # fmt: skip


def test_two_leaves_of_one_name_are_refused():
    with pytest.raises(ValueError, match=r"both named 'a\.b'"):
        tree.named_leaves({"a.b": 1, "a": {"b": 2}})


def test_leaves_can_be_replaced_by_name():
    nested = Pair(1, {"w": 2})
    assert tree.with_leaves(nested, {"count": 5, "mu.w": 6}) == Pair(5, {"w": 6})


def test_sizes_count_elements_and_bytes():
    arrays = {
        "a": jnp.ones((2, 3)), "b": jnp.ones(4, jnp.bfloat16),
        "c": jax.ShapeDtypeStruct((5,), jnp.int8),
    }  # fmt: skip
    assert tree.num_elements(arrays) == 15
    assert tree.num_bytes(arrays) == 24 + 8 + 5
