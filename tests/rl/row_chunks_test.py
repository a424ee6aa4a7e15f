"""Passes over a few rows at a time say what one pass over all rows says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.rl import helpers
from tunix.models.transformer import decoder
from tunix.rl import common, row_chunks


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    made = helpers.one_batch(helpers.make_groups(rng.normal(size=(7, 3))), row_length=32)
    assert made.tokens.shape[0] >= 4
    return made


@pytest.mark.parametrize(("rows", "multiple"), [(1, 1), (2, 1), (3, 1), (1, 2), (100, 1)])
def test_every_token_is_in_exactly_one_chunk_with_its_context(batch, rows, multiple):
    calls = []

    def fn(part):
        calls.append(part.tokens.shape)
        tokens = np.asarray(part.tokens).ravel()
        marks = 1000 * np.asarray(part.targets) + tokens[np.asarray(part.source)]
        return common.by_sequence(jnp.asarray(marks, jnp.float32), jnp.asarray(part.slot))

    want = fn(batch)
    calls.clear()
    found = row_chunks.by_chunks(fn, batch, rows, multiple=multiple)
    np.testing.assert_array_equal(found, want)
    width = min(-(-rows // multiple) * multiple, batch.tokens.shape[0])
    assert set(calls) == {(width, 32)}
    assert len(calls) == -(-batch.tokens.shape[0] // width)


def test_log_probabilities_do_not_depend_on_the_chunks(batch):
    model = helpers.tiny_decoder()
    fn = jax.jit(lambda part: common.token_logps(model, part))
    want = row_chunks.by_chunks(fn, batch, None)
    found = row_chunks.by_chunks(fn, batch, 1)
    assert np.abs(want).max() > 1.0
    np.testing.assert_allclose(found, want, atol=1e-5)


def test_the_setting_bounds_the_rows_that_models_see(batch, monkeypatch):
    seen = []
    hidden = decoder.Decoder.hidden

    def spy(self, tokens, *args, **options):
        seen.append(tokens.shape[0])
        return hidden(self, tokens, *args, **options)

    cluster = helpers.make_cluster(
        reference=helpers.tiny_decoder(1), compute_logps_micro_batch_size=2
    )
    plain = helpers.make_cluster(reference=helpers.tiny_decoder(1))
    monkeypatch.setattr(decoder.Decoder, "hidden", spy)
    for name in ("get_ref_per_token_logps", "get_old_per_token_logps"):
        seen.clear()
        found = getattr(cluster, name)(batch)
        assert set(seen) == {2}, name
        np.testing.assert_allclose(found, getattr(plain, name)(batch), atol=1e-5)
