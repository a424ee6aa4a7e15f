"""Ids without an embedding are named before a model reads them, in every kind of batch."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.data import tokenizers
from tests.sft import toys
from tests.sft.dpo import helpers
from tunix.data.preference import preference_batches, preference_config, preference_tokens
from tunix.models.transformer import token_ids
from tunix.rl.objectives import critic
from tunix.rl.reward_fns import reward_model as reward_fn
from tunix.sft import peft_trainer
from tunix.sft.dpo import (
    dpo_trainer,
    kto_trainer,
    precompute,
    reward_function,
    reward_model,
    reward_trainer,
)

SIZE = toys.VOCAB
LOOP = {"eval_every_n_steps": 100, "pbar_description": None}
MESSAGE = rf"token ids \[{SIZE}\], and the model has embeddings of 0 to {SIZE - 1} only"


def test_the_ids_outside_come_once_and_in_order():
    found = token_ids.outside([[3, 9, -1], [8, 9, 2]], 8)
    assert found.tolist() == [-1, 8, 9]
    assert token_ids.outside([], 8).tolist() == []
    assert token_ids.shown(np.arange(7)) == "[0, 1, 2, 3, 4] and 2 more"


def test_every_leaf_of_tokens_is_looked_at_wherever_it_stands():
    batch = {
        "input_tokens": np.array([[1, 8]]),
        "part": {"tokens": jnp.array([[-1, 2]]), "targets": np.array([-100, 9])},
        "positions": np.array([[100, 200]]),
        "input_ids": np.array([[7.5, 99.0]]),
    }
    with pytest.raises(token_ids.TokenIdError) as error:
        token_ids.require(batch, 8)
    assert str(error.value).startswith(
        "input_tokens holds token ids [8]; part.tokens holds token ids [-1]; "
        "part.targets holds token ids [9], and the model has embeddings of 0 to 7 only"
    )
    token_ids.require(batch, None)


def test_padding_is_not_looked_at():
    batch = {"tokens": np.array([[1, 9, -1]]), "segment_ids": np.array([[1, 0, 0]])}
    token_ids.require(batch, 8)
    with pytest.raises(token_ids.TokenIdError):
        token_ids.require({"tokens": batch["tokens"]}, 8)


def test_the_decoder_is_found_inside_what_is_built_around_it():
    model = toys.tiny_decoder()
    assert token_ids.num_embeddings(model) == SIZE
    assert token_ids.num_embeddings(reward_model.RewardModel(model, rngs=nnx.Rngs(0))) == SIZE
    assert token_ids.num_embeddings(critic.create_critic_model(model)) == SIZE
    assert token_ids.num_embeddings(toys.Linear(rngs=nnx.Rngs(0))) is None


def rows(last):
    tokens = np.array([[1, 2, 3, last]] * 2, np.int32)
    return peft_trainer.TrainingInput(tokens, np.ones_like(tokens))


@pytest.mark.parametrize("make", [np.asarray, jnp.asarray], ids=["host", "device"])
def test_training_and_evaluation_refuse_what_has_no_embedding(make):
    config = peft_trainer.TrainingConfig(**LOOP)
    trainer = peft_trainer.PeftTrainer(toys.tiny_decoder(), optax.sgd(0.1), config)
    good, bad = rows(SIZE - 1), rows(SIZE)
    bad = bad.replace(input_tokens=make(bad.input_tokens))
    with pytest.raises(token_ids.TokenIdError, match=MESSAGE):
        trainer.train([good, bad])
    assert trainer.train_steps == 1
    with pytest.raises(token_ids.TokenIdError, match=MESSAGE):
        trainer.evaluate([good, bad])
    with pytest.raises(token_ids.TokenIdError, match=r"\[-2\]"):
        trainer.train([rows(-2)])


def with_last(answer, token):
    """Return an answer that ends in another token, which is read by no later one."""
    tokens = np.array(answer.tokens)
    tokens[-1] = token
    return preference_tokens.Answer(tokens, answer.mask)


def pairs(token):
    found = helpers.pairs(2)
    rejected = with_last(found[1].rejected, token)
    return [found[0], preference_tokens.TokenizedPair(found[1].prompt, found[1].chosen, rejected)]


SETTINGS = preference_config.PreferenceDataConfig(batch_size=2, shuffle_seed=None)


def dpo(**settings):
    config = dpo_trainer.DPOTrainingConfig(**LOOP, **settings)
    reference = None if settings.get("algorithm") == "orpo" else toys.tiny_decoder(seed=1)
    return dpo_trainer.DPOTrainer(toys.tiny_decoder(), reference, optax.sgd(0.1), config)


@pytest.mark.parametrize("algorithm", ["dpo", "orpo"])
def test_pairs_with_such_a_token_are_refused(algorithm):
    trainer = dpo(algorithm=algorithm)
    batches = preference_batches.pair_batches(pairs(SIZE), SETTINGS)
    with pytest.raises(token_ids.TokenIdError, match=MESSAGE):
        trainer.train(batches)
    with pytest.raises(token_ids.TokenIdError, match=MESSAGE):
        trainer.evaluate(list(batches))
    trainer.train(preference_batches.pair_batches(pairs(SIZE - 1), SETTINGS))
    assert trainer.train_steps == 1


def test_pairs_given_as_token_ids_are_refused():
    ids, mask = np.array([[1, 2]], np.int32), np.ones((1, 2), bool)
    batch = dpo_trainer.TrainingInput(ids, mask, ids + 1, mask, ids + SIZE - 2, mask)
    with pytest.raises(token_ids.TokenIdError, match=MESSAGE):
        dpo().train([batch])


def test_reference_log_probabilities_of_such_pairs_are_refused():
    with pytest.raises(token_ids.TokenIdError, match=MESSAGE):
        precompute.with_reference_logps(pairs(SIZE), toys.tiny_decoder())


def test_ratings_with_such_a_token_are_refused():
    ratings = helpers.ratings(2)
    bad = preference_tokens.TokenizedRating(
        ratings[0].prompt, with_last(ratings[0].answer, SIZE), True, ratings[0].foreign
    )
    config = kto_trainer.KTOTrainingConfig(**LOOP)
    models = toys.tiny_decoder(), toys.tiny_decoder(seed=1)
    trainer = kto_trainer.KTOTrainer(*models, optax.sgd(0.1), config)
    with pytest.raises(token_ids.TokenIdError, match=MESSAGE):
        trainer.train(preference_batches.rating_batches([bad, ratings[1]], SETTINGS))


def test_a_reward_model_neither_learns_from_nor_scores_such_tokens():
    model = reward_model.RewardModel(toys.tiny_decoder(), rngs=nnx.Rngs(0))
    config = reward_trainer.RewardTrainingConfig(**LOOP)
    trainer = reward_trainer.RewardTrainer(model, optax.sgd(0.1), config)
    batches = preference_batches.pair_batches(pairs(SIZE), SETTINGS, with_last=True)
    with pytest.raises(token_ids.TokenIdError, match=MESSAGE):
        trainer.train(batches)
    with pytest.raises(token_ids.TokenIdError, match=MESSAGE):
        reward_fn.RewardModelScores(model)([np.array([1, 2]), np.array([1, SIZE])], [1, 1])
    small = toys.tiny_decoder(vocab_size=4)
    scores = reward_function.RewardFunction(
        reward_model.RewardModel(small, rngs=nnx.Rngs(0)), tokenizers.make()
    )
    with pytest.raises(token_ids.TokenIdError, match="embeddings of 0 to 3 only"):
        scores(["a"], ["b"])
