"""Thresholds where a token's place is exactly on the border, listed or found by bisection."""

import jax.numpy as jnp
import numpy as np
import pytest

from tunix.ops import truncation


@pytest.fixture(params=[64, 1], ids=["listed", "by bisection"], autouse=True)
def _candidates(request, monkeypatch):
    """Let the largest values decide, or leave all but the heaviest token to the search."""
    monkeypatch.setattr(truncation, "CANDIDATES", request.param)


def kept(probabilities, *, top_k=0, top_p=1.0, min_p=0.0):
    """Return which tokens of one row are kept."""
    logits = jnp.log(jnp.asarray([probabilities], jnp.float32))
    top, temperature = logits.max(axis=1), jnp.ones(1)
    thresholds = truncation.find_thresholds(
        logits,
        top,
        temperature,
        top_k=jnp.array([top_k]),
        top_p=jnp.array([top_p]),
        min_p=jnp.array([min_p]),
    )
    weights = truncation.kept_weights(logits, top, temperature, thresholds)
    np.testing.assert_allclose(
        weights[0], np.where(weights[0] > 0, probabilities / np.max(probabilities), 0), rtol=1e-6
    )
    return np.flatnonzero(weights[0]).tolist()


@pytest.mark.parametrize(
    ("probabilities", "top_p", "expected"),
    [
        pytest.param([0.5, 0.25, 0.25], 0.5, [0], id="reached by the first"),
        pytest.param([0.25, 0.5, 0.25], 0.5, [1], id="whatever its place"),
        pytest.param([0.5, 0.25, 0.25], 0.51, [0, 1, 2], id="just missed: ties come together"),
        pytest.param([0.5, 0.25, 0.125, 0.125], 0.75, [0, 1], id="reached by the second"),
        pytest.param([0.5, 0.25, 0.125, 0.125], 0.76, [0, 1, 2, 3], id="just missed by it"),
        pytest.param([0.25, 0.25, 0.25, 0.125, 0.125], 0.75, [0, 1, 2], id="reached by ties"),
        pytest.param([0.5, 0.25, 0.125, 0.0625, 0.0625], 0.875, [0, 1, 2], id="by the third"),
        pytest.param([0.5, 0.25, 0.25], 1e-9, [0], id="the heaviest always stays"),
        pytest.param([0.5, 0.25, 0.25], 1.0, [0, 1, 2], id="all of the mass"),
    ],
)
def test_top_p_keeps_no_token_beyond_a_mass_of_exactly_top_p(probabilities, top_p, expected):
    assert kept(probabilities, top_p=top_p) == expected


def test_top_p_of_what_top_k_kept_is_exact_too():
    # Of 8/14, 4/14 and 2/14 top-k leaves 2/3 and 1/3; with 3/4 and 1/4 the border is exact.
    assert kept([0.5, 0.5 / 3, 0.25 / 3], top_k=2, top_p=0.75) == [0]
    assert kept([0.5, 0.5 / 3, 0.25 / 3], top_k=2, top_p=0.76) == [0, 1]


@pytest.mark.parametrize(("k", "expected"), [(1, [0]), (2, [0, 1]), (3, [0, 1, 2, 3]), (5, None)])
def test_top_k_keeps_k_tokens_and_what_ties_with_the_last(k, expected):
    assert kept([0.4, 0.3, 0.1, 0.1, 0.05, 0.05], top_k=k) == (expected or list(range(6)))


def test_min_p_keeps_a_token_at_exactly_that_share_of_the_heaviest():
    assert kept([0.5, 0.25, 0.125, 0.125], min_p=0.5) == [0, 1]
    assert kept([0.5, 0.25, 0.125, 0.125], min_p=0.25) == [0, 1, 2, 3]


def test_a_row_with_fewer_possible_tokens_than_k_keeps_them_whatever_its_batch_mates_need():
    # The search ends at -inf for such a row, often a step before it ends for another.
    possible, k = np.array([70, 70, 90, 95, 80, 99]), np.array([90, 71, 80, 2, 85, 70])
    logits = jnp.linspace(3.0, -2.0, 600).reshape(6, 100)
    logits = jnp.where(jnp.arange(100) < possible[:, None], logits, -jnp.inf)
    top, temperature = logits.max(axis=1), jnp.ones(6)
    neutral = {"top_p": jnp.ones(6), "min_p": jnp.zeros(6)}
    thresholds = truncation.find_thresholds(
        logits, top, temperature, top_k=jnp.asarray(k), **neutral
    )
    weights = truncation.kept_weights(logits, top, temperature, thresholds)
    assert (weights > 0).sum(axis=1).tolist() == np.minimum(possible, k).tolist()


def kept_by_a_sort(logits, temperature, top_k, top_p, min_p):
    """Return the same set written the slow way, in float64."""
    weights = np.exp((logits - logits.max()) / temperature)
    inside = np.ones(len(logits), bool)
    if 0 < top_k < len(logits):
        inside = logits >= np.sort(logits)[-top_k]
    mass = np.where(inside, weights, 0.0)
    order = np.argsort(weights)
    at_or_below = np.cumsum(mass[order])[np.searchsorted(weights[order], weights, "right") - 1]
    above = 1.0 - at_or_below / mass.sum()
    return inside & ((above < top_p) | (top_p >= 1.0)) & (weights >= min_p) & (weights > 0)


@pytest.mark.parametrize("vocab", [40, 2048, 2049])
def test_every_row_keeps_what_a_sort_would_keep(vocab):
    # Around 64 candidates, and 64 groups of 32: a vocabulary of 2048 has just as many.
    settings = [
        (temperature, top_k, top_p, min_p)
        for temperature in (0.5, 3.0)
        for top_k in (0, 1, 5, 63, 64, 65, 200, vocab - 1, vocab, vocab + 9)
        for top_p, min_p in ((1.0, 0.0), (0.3, 0.0), (0.93, 0.0), (0.999, 0.0), (1.0, 0.05))
    ]
    rng = np.random.default_rng(vocab)
    logits = rng.normal(size=(len(settings), vocab)).astype(np.float32)
    logits[::3, rng.integers(0, vocab, vocab // 3)] = -np.inf
    logits[1::3] -= 50.0
    columns = [jnp.asarray(column) for column in zip(*settings, strict=True)]
    temperature = columns[0].astype(jnp.float32)
    top = jnp.asarray(logits.max(axis=1))
    thresholds = truncation.find_thresholds(
        jnp.asarray(logits),
        top,
        temperature,
        **dict(zip(("top_k", "top_p", "min_p"), columns[1:], strict=True)),
    )
    found = truncation.kept_weights(jnp.asarray(logits), top, temperature, thresholds) > 0
    for row, setting in enumerate(settings):
        expected = kept_by_a_sort(logits[row].astype(np.float64), *setting)
        np.testing.assert_array_equal(found[row], expected, err_msg=str(setting))
