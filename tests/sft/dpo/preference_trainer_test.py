"""Batches, references and errors of the preference trainers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.data import tokenizers
from tests.sft import toys
from tests.sft.dpo import arrangements, helpers
from tunix.data.preference import (
    preference_batches,
    preference_batching,
    preference_config,
    preference_tokens,
)
from tunix.models import lora
from tunix.sft.dpo import (
    answer_logps,
    dpo_trainer,
    kto_trainer,
    precompute,
    preference_losses,
    reward_function,
    reward_model,
    reward_trainer,
)

PAIRS = helpers.pairs(4)
LOOP = arrangements.LOOP


def one_layer(seed=0):
    return arrangements.OneLayer(seed=seed)


def dpo(model=None, ref_model=None, tokenizer=None, **settings):
    config = dpo_trainer.DPOTrainingConfig(**LOOP, **settings)
    model = one_layer() if model is None else model
    return dpo_trainer.DPOTrainer(model, ref_model, optax.sgd(0.1), config, tokenizer)


def test_the_loss_is_that_of_the_log_probabilities():
    trainer = dpo(ref_model=one_layer(1), beta=0.3, label_smoothing=0.2)
    batch = helpers.padded(PAIRS)
    found = trainer.evaluate([batch])
    policy = np.asarray(answer_logps.answer_logps(one_layer(0), batch.rows))
    ref = np.asarray(answer_logps.answer_logps(one_layer(1), batch.rows))
    pairs = preference_losses.Pairs(*map(jnp.asarray, (*policy.T, *ref.T)), *jnp.ones((2, 4)))
    losses = preference_losses.sigmoid(pairs, beta=0.3, label_smoothing=0.2)
    chosen, rejected = 0.3 * (policy - ref).T
    want = {
        "loss": losses.mean(),
        "rewards/chosen": chosen.mean(),
        "rewards/rejected": rejected.mean(),
        "rewards/margins": (chosen - rejected).mean(),
        "rewards/accuracies": (chosen > rejected).mean(),
        "logps/chosen": policy[:, 0].mean(),
        "logps/rejected": policy[:, 1].mean(),
        "logps/accuracies": (policy[:, 0] > policy[:, 1]).mean(),
    }
    assert found == pytest.approx({k: float(v) for k, v in want.items()}, rel=1e-5)


def test_training_prefers_what_was_chosen_and_leaves_the_reference_alone():
    ref_model = one_layer(0)
    before = toys.leaves(nnx.state(ref_model))
    trainer = dpo(ref_model=ref_model, beta=0.5)
    batches = [helpers.padded(PAIRS)]
    assert trainer.evaluate(batches)["loss"] == pytest.approx(np.log(2), rel=1e-6)
    trainer.train(batches * 20)
    after = trainer.evaluate(batches)
    assert after["rewards/accuracies"] == 1.0
    assert after["loss"] < 0.3
    toys.assert_bit_identical(before, toys.leaves(nnx.state(ref_model)))


def test_without_a_ref_model_the_base_of_the_adapters_is_the_reference():
    model = toys.tiny_decoder()
    base = helpers.copy_of(model)
    lora.apply_lora(model, lora.LoraConfig(rank=2, alpha=4.0), rngs=nnx.Rngs(0))
    changed = jax.tree.map(lambda x: x + 0.1, nnx.state(model, nnx.LoRAParam))
    nnx.update(model, changed)
    trainer = dpo(model)
    batch = helpers.padded(PAIRS)
    found = trainer.model_input(batch)["batch"].ref_logps
    want = answer_logps.answer_logps(base, batch.rows)
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)


def test_a_missing_reference_is_an_error_with_a_remedy():
    with pytest.raises(ValueError, match="there is no ref_model, the model has no LoRA adapters"):
        dpo().train([helpers.padded(PAIRS)])


def test_a_reference_that_would_move_along_is_refused():
    model = one_layer()
    with pytest.raises(ValueError, match="ref_model is the model that is trained"):
        dpo(model, model)


def test_an_objective_without_reference_computes_none():
    trainer = dpo(algorithm="orpo")
    assert trainer.model_input(helpers.padded(PAIRS))["batch"].ref_logps is None
    found = trainer.evaluate([helpers.padded(PAIRS)])
    logps = np.asarray(answer_logps.answer_logps(one_layer(), helpers.padded(PAIRS).rows))
    lengths = np.array([[p.chosen.length, p.rejected.length] for p in PAIRS])
    means = logps / lengths
    odds = means - np.log1p(-np.exp(means))
    want = -means[:, 0].mean() + 0.1 * np.log1p(np.exp(odds[:, 1] - odds[:, 0])).mean()
    assert found["loss"] == pytest.approx(want, rel=1e-5)


def test_other_batches_are_refused_by_name():
    with pytest.raises(TypeError, match="a batch is a dict; expected a PairBatch"):
        dpo(algorithm="orpo").train([{"input_tokens": np.zeros((1, 2))}])
    with pytest.raises(TypeError, match=r"DataInput.* needs a trainer with a tokenizer"):
        dpo(algorithm="orpo").train([dpo_trainer.DataInput(["a"], ["b"], ["c"])])


def test_strings_are_the_tokens_of_their_record():
    tokenizer = tokenizers.make()
    texts = (["ab", "cde"], ["f", "gh"], ["ijk", "l"])
    trainer = dpo(algorithm="orpo", tokenizer=tokenizer)
    from_strings = trainer.model_input(dpo_trainer.DataInput(*texts))["batch"]
    names = ("prompts", "chosen_responses", "rejected_responses")
    record = dpo_trainer.process_dpo_record(
        dict(zip(names, texts, strict=True)), tokenizer, max_prompt_length=6, max_response_length=6
    )
    assert record.prompt_ids.shape == record.chosen_ids.shape == (2, 6)
    assert record.prompt_mask[:, -1].all() and record.chosen_mask[:, 0].all()
    toys.assert_bit_identical(from_strings, trainer.model_input(record)["batch"])
    # The answer ends with the token that ends a text.
    last = record.chosen_ids[0, record.chosen_mask[0]][-1]
    assert last == tokenizer.eos_id()


def test_strings_that_are_too_long_or_empty_are_listed():
    trainer = dpo(algorithm="orpo", tokenizer=tokenizers.make(), max_response_length=3)
    batch = dpo_trainer.DataInput(["a", "", "b"], ["x" * 9, "y", "z"], ["x", "y", "zz"])
    with pytest.raises(ValueError, match="cannot use a batch of strings") as error:
        trainer.model_input(batch)
    assert "entry 0: an answer has" in str(error.value)
    assert "entry 1: prompts is empty" in str(error.value)
    assert "entry 2" not in str(error.value)


def test_a_row_of_padding_counts_nothing():
    ids = helpers.as_ids(PAIRS, left=False)
    more = jax.tree.map(lambda x: np.concatenate([x, np.zeros_like(x[:1])]), ids)
    trainer = dpo(algorithm="orpo")
    assert trainer.evaluate([more]) == pytest.approx(trainer.evaluate([ids]), rel=1e-6)


def test_half_a_pair_is_an_error():
    ids = helpers.as_ids(PAIRS, left=False)
    ids.chosen_mask[2] = False
    with pytest.raises(ValueError, match=r"row 2: prompt, chosen and rejected have \[3, 0, "):
        dpo(algorithm="orpo").model_input(ids)


def test_the_plain_loss_function_agrees_with_the_trainer():
    model, ref_model = toys.tiny_decoder(), toys.tiny_decoder(seed=1)
    trainer = dpo(model, ref_model, label_smoothing=0.1)
    rows = [np.concatenate([p.prompt, a.tokens]) for i in (0, 1) for p in PAIRS
            for a in [p.answers[i]]]  # fmt: skip
    width, kept = max(map(len, rows)), 5
    ids, completion = np.zeros((8, width), np.int32), np.zeros((8, kept), bool)
    real = np.zeros(ids.shape, bool)
    for i, row in enumerate(rows):
        # Answers end the row: prompts are padded on the left.
        ids[i, width - len(row) :], real[i, width - len(row) :] = row, True
        completion[i, kept - len(PAIRS[i % 4].answers[i // 4].tokens) :] = True
    causal = np.tril(np.ones((width, width), bool)) & real[:, None, :]
    example = dpo_trainer.TrainExample(
        input_ids=jnp.asarray(ids),
        positions=jnp.asarray(np.maximum(np.cumsum(real, axis=1) - 1, 0)),
        attention_mask=jnp.asarray(causal | np.eye(width, dtype=bool)),
        ref_chosen_logps=None,
        ref_rejected_logps=None,
        completion_mask=jnp.asarray(completion),
        logits_to_keep=kept,
    )
    parts = (example.input_ids, example.positions, example.attention_mask, kept, completion)
    ref = dpo_trainer.compute_logps(ref_model, *parts)
    example = dataclasses.replace(example, ref_chosen_logps=ref[:4], ref_rejected_logps=ref[4:])
    loss, metrics = dpo_trainer.dpo_loss_fn(model, example, label_smoothing=0.1)
    want = trainer.evaluate([helpers.padded(PAIRS)])
    assert {"loss": float(loss), **jax.tree.map(float, metrics)} == pytest.approx(
        {k: v for k, v in want.items() if k != "logps/accuracies"}, rel=1e-4
    )
    with pytest.raises(ValueError, match="algorithm 'dppo': must be 'orpo', or 'dpo'"):
        dpo_trainer.dpo_loss_fn(model, example, algorithm="dppo")


@pytest.mark.parametrize("kind", ["pairs", "ratings"])
def test_precomputed_reference_log_probabilities_are_those_of_the_reference(kind, tmp_path):
    examples = PAIRS if kind == "pairs" else helpers.ratings(5)
    known = precompute.with_reference_logps(
        examples, one_layer(1), batch_size=3, cache_file=tmp_path / "ref.npz"
    )
    settings = preference_config.PreferenceDataConfig(batch_size=8, last_batch="keep")
    make = preference_batches.pair_batches if kind == "pairs" else preference_batches.rating_batches
    (live,), (ahead,) = make(examples, settings), make(known, settings)
    if kind == "pairs":
        trainer = dpo(ref_model=one_layer(1))
    else:
        config = kto_trainer.KTOTrainingConfig(**LOOP)
        trainer = kto_trainer.KTOTrainer(one_layer(), one_layer(1), optax.sgd(0.1), config)
    # A reward is 0.1 times the difference of two sums below 32, which batches of other sizes round
    # differently in their last bit.
    expected = pytest.approx(trainer.evaluate([live]), rel=1e-6, abs=0.1 * 2**-19)
    assert trainer.evaluate([ahead]) == expected


def test_a_file_of_reference_log_probabilities_is_read_and_checked(tmp_path):
    path = tmp_path / "ref.npz"
    first = precompute.with_reference_logps(PAIRS, one_layer(1), cache_file=path)
    again = precompute.with_reference_logps(PAIRS, one_layer(1), cache_file=path)
    assert [pair.ref_logps for pair in first] == [pair.ref_logps for pair in again]
    with pytest.raises(precompute.ReferenceCacheError, match="for other model than these"):
        precompute.with_reference_logps(PAIRS, one_layer(2), cache_file=path)
    with pytest.raises(precompute.ReferenceCacheError, match="for other data than these"):
        precompute.with_reference_logps(PAIRS[:3], one_layer(1), cache_file=path)


def test_a_batch_of_known_and_unknown_references_is_refused():
    known = dataclasses.replace(PAIRS[0], ref_logps=preference_tokens.RefLogps(-1.0, -2.0))
    with pytest.raises(ValueError, match="some examples have reference log-probabilities"):
        helpers.padded([known, PAIRS[1]])


def test_kto_learns_what_is_good_and_what_is_bad():
    config = kto_trainer.KTOTrainingConfig(**LOOP, beta=0.5)
    trainer = kto_trainer.KTOTrainer(one_layer(), one_layer(), optax.sgd(0.5), config)
    (batch,) = preference_batches.rating_batches(
        helpers.ratings(6), preference_config.PreferenceDataConfig(batch_size=6)
    )
    before = trainer.evaluate([batch])
    assert before["loss"] == pytest.approx(0.5, abs=1e-6)  # r = z = 0
    trainer.train([batch] * 20)
    after = trainer.evaluate([batch])
    assert after["loss"] < 0.3
    assert after["rewards/chosen"] > 0.3 > 0.0 > after["rewards/rejected"]


def test_kto_takes_ratings_only():
    config = kto_trainer.KTOTrainingConfig(**LOOP)
    trainer = kto_trainer.KTOTrainer(one_layer(), one_layer(1), optax.sgd(0.1), config)
    with pytest.raises(TypeError, match="a batch is a PairBatch; KTO takes a RatingBatch"):
        trainer.train([helpers.padded(PAIRS)])


def reward_batch(found):
    return preference_batching.collate_pairs(
        [[pair] for pair in found], num_rows=len(found), length=16, with_last=True
    )


def test_a_reward_is_read_off_the_last_token_of_each_answer():
    model = reward_model.RewardModel(toys.tiny_decoder(), rngs=nnx.Rngs(0))
    found = model.rewards(reward_batch(PAIRS).rows)
    for i, pair in enumerate(PAIRS[:2]):
        for k, answer in enumerate(pair.answers):
            row = jnp.asarray(np.concatenate([pair.prompt, answer.tokens])[None])
            hidden, _ = model.decoder.hidden(row)
            np.testing.assert_allclose(found[i, k], hidden[0, -1] @ model.score[...], rtol=1e-4)


def test_a_reward_model_learns_the_pairs_with_adapters_and_its_head():
    decoder = toys.tiny_decoder(num_layers=1)
    lora.apply_lora(decoder, lora.LoraConfig(rank=2, alpha=4.0), rngs=nnx.Rngs(1))
    model = reward_model.RewardModel(decoder, rngs=nnx.Rngs(0))
    config = reward_trainer.RewardTrainingConfig(**LOOP)
    trainer = reward_trainer.RewardTrainer(model, optax.adam(0.02), config)
    assert "score" in trainer.state.params
    assert all("lora" in name for name in trainer.state.params if name != "score")
    batch = reward_batch(PAIRS)
    before = trainer.evaluate([batch])
    trainer.train([batch] * 15)
    after = trainer.evaluate([batch])
    assert after["rewards/accuracies"] == 1.0
    assert after["loss"] < 0.5 * before["loss"]


@pytest.mark.parametrize("kind", ["text", "messages"])
def test_a_reward_model_serves_as_reward_function(kind):
    tokenizer = tokenizers.make()
    decoder = toys.tiny_decoder(num_layers=1, vocab_size=tokenizer.tokenizer.get_vocab_size())
    model = reward_model.RewardModel(decoder, rngs=nnx.Rngs(0))
    texts, replies = ["ab", "c", "def"], ["x", "yz", ""]
    prompts = texts
    if kind == "messages":
        prompts = [[{"role": "user", "content": text}] for text in texts]
    found = reward_function.RewardFunction(model, tokenizer, batch_size=2)(
        prompts, replies, finish_reasons=["stop"] * 3
    )
    for prompt, reply, reward in zip(prompts, replies, found, strict=True):
        if kind == "text":
            ids = [*tokenizer.encode_prompt(prompt), *tokenizer.encode_text(reply), tokenizers.EOS]
        else:
            ids = [*tokenizer.encode_prompt(prompt), *tokenizer.encode_text(reply)]
            ids.append(tokenizers.IM_END)
        hidden, _ = decoder.hidden(jnp.asarray([ids]))
        assert reward == pytest.approx(float(hidden[0, -1] @ model.score[...]), rel=1e-4)


def test_a_margin_asks_for_more():
    model = reward_model.RewardModel(toys.tiny_decoder(num_layers=1), rngs=nnx.Rngs(0))
    objective = reward_trainer.RewardObjective()
    plain = objective.loss(model, reward_batch(PAIRS))
    wider = reward_batch([dataclasses.replace(pair, margin=2.0) for pair in PAIRS])
    chosen, rejected = model.rewards(wider.rows).T
    want = np.log1p(np.exp(-(chosen - rejected - 2.0))).sum()
    found = objective.loss(model, wider)
    np.testing.assert_allclose(found.loss_sum, want, rtol=1e-5)
    assert found.loss_sum > plain.loss_sum


def test_rewards_are_pulled_towards_zero():
    model = reward_model.RewardModel(toys.tiny_decoder(num_layers=1), rngs=nnx.Rngs(0))
    batch = reward_batch(PAIRS)
    config = reward_trainer.RewardTrainingConfig(**LOOP, center_rewards_coefficient=0.3)
    objective = reward_trainer.RewardTrainer.objective_of(config)
    plain, centred = (x.loss(model, batch) for x in (reward_trainer.RewardObjective(), objective))
    sums = np.asarray(model.rewards(batch.rows)).sum(axis=1)
    np.testing.assert_allclose(centred.loss_sum - plain.loss_sum, 0.3 * (sums**2).sum(), rtol=1e-4)


def test_rows_without_last_tokens_have_no_reward():
    model = reward_model.RewardModel(toys.tiny_decoder(num_layers=1), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="make the batches with with_last=True"):
        model.rewards(helpers.padded(PAIRS).rows)
