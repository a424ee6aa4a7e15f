"""Log-probabilities of answers that share a prompt, against one row per answer."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from tests.sft import toys
from tests.sft.dpo import helpers
from tunix.data.preference import preference_batching, preference_tokens
from tunix.models import lora
from tunix.sft.dpo import answer_logps

PAIRS = helpers.pairs(5)


@nnx.jit(static_argnames="adapters")
def logps_of(model, rows, adapters=True):
    return answer_logps.answer_logps(model, rows, adapters=adapters)


@nnx.jit
def separate(model):
    return helpers.separate_logps(model, PAIRS)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="global attention"),
        pytest.param(
            {"attention_types": ("local", "global"), "sliding_window_size": 3}, id="windows"
        ),
        pytest.param({"final_logit_softcap": 5.0}, id="soft cap"),
    ],
)
def test_a_shared_prompt_changes_nothing(changes):
    model = toys.tiny_decoder(**changes)
    rows = helpers.padded(PAIRS).rows
    found = logps_of(model, rows)
    np.testing.assert_allclose(found, separate(model), rtol=1e-5, atol=1e-5)


def test_packed_rows_give_the_same():
    model = toys.tiny_decoder()
    packed = preference_batching.collate_pairs(
        [PAIRS[:3], PAIRS[3:]], num_rows=3, length=40, pairs_per_row=4
    )
    found = np.asarray(logps_of(model, packed.rows)).reshape(3, 4, 2)
    want = separate(model)
    np.testing.assert_allclose(found[0, :3], want[:3], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[1, :2], want[3:], rtol=1e-5, atol=1e-5)
    assert (found[0, 3:] == 0).all() and (found[1, 2:] == 0).all() and (found[2] == 0).all()


def test_gradients_are_those_of_separate_rows():
    model = toys.tiny_decoder()
    rows = helpers.padded(PAIRS).rows
    factors = np.random.default_rng(0).normal(size=(5, 2))

    @nnx.jit
    def gradients(model):
        shared = nnx.grad(lambda m: (factors * answer_logps.answer_logps(m, rows)).sum())(model)
        apart = nnx.grad(lambda m: (factors * helpers.separate_logps(m, PAIRS)).sum())(model)
        return shared, apart

    for ours, want in zip(*map(jax.tree.leaves, gradients(model)), strict=True):
        np.testing.assert_allclose(ours, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())


def test_a_foreign_module_gives_the_same():
    model = toys.tiny_decoder()
    rows = helpers.padded(PAIRS, num_rows=6).rows
    np.testing.assert_allclose(
        logps_of(toys.ForeignModel(model), rows),
        logps_of(model, rows),
        rtol=1e-5,
        atol=1e-5,
    )


def test_tokens_of_others_inside_an_answer_are_read_but_do_not_count():
    rng = np.random.default_rng(3)
    ids, mask = helpers.tokens(rng, 5), np.array([True, True, False, False, True])
    whole = preference_tokens.Answer(ids, mask)
    pair = preference_tokens.TokenizedPair(helpers.tokens(rng, 2), whole, helpers.answer(rng, 2))
    model = toys.tiny_decoder()

    def of_first(count):
        part = preference_tokens.Answer(ids[:count], np.ones(count, bool))
        return dataclasses.replace(pair, chosen=part)

    found = logps_of(model, helpers.padded([pair]).rows)[0, 0]
    two, four, five = helpers.separate_logps(model, [of_first(n) for n in (2, 4, 5)])[:, 0]
    np.testing.assert_allclose(found, two + five - four, rtol=1e-5)


def test_the_base_model_of_a_lora_run_is_the_model_before_it():
    model = toys.tiny_decoder()
    rows = helpers.padded(PAIRS).rows
    before = logps_of(model, rows)
    lora.apply_lora(model, lora.LoraConfig(rank=2, alpha=8.0), rngs=nnx.Rngs(0))
    state = nnx.state(model, nnx.LoRAParam)
    nnx.update(model, jax.tree.map(lambda x: x + 0.1, state))
    off = logps_of(model, rows, adapters=False)
    np.testing.assert_allclose(off, before, rtol=1e-6)
    assert np.abs(logps_of(model, rows) - before).max() > 0.1


def test_a_foreign_module_cannot_leave_its_adapters_out():
    with pytest.raises(ValueError, match=r"not a tunix decoder.*give the trainer a ref_model"):
        answer_logps.answer_logps(
            toys.ForeignModel(toys.tiny_decoder()), helpers.padded(PAIRS).rows, adapters=False
        )
