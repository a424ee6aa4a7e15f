"""Adapter dropout: in the policy's training passes, and nowhere else."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.sft import toys
from tests.sft.dpo import arrangements, helpers
from tunix.data.preference import preference_batching
from tunix.models import lora
from tunix.sft.dpo import (
    answer_logps,
    dpo_trainer,
    kto_objective,
    pair_objective,
    reward_model,
    reward_trainer,
)

PAIRS, RATINGS = helpers.pairs(3), helpers.ratings(3)


def adapted(dropout=0.5):
    """A decoder with an adapter that does something."""
    model = toys.tiny_decoder(num_layers=1)
    config = lora.LoraConfig(rank=2, alpha=8.0, module_path="q_proj|up_proj", dropout=dropout)
    lora.apply_lora(model, config, rngs=nnx.Rngs(1))
    state = nnx.state(model, nnx.LoRAParam)
    leaves, tree = jax.tree.flatten(state)
    drawn = [jax.random.normal(jax.random.key(i), x.shape) for i, x in enumerate(leaves)]
    nnx.update(model, jax.tree.unflatten(tree, drawn))
    return model


def pair_batch(model):
    batch = preference_batching.collate_pairs(
        [[pair] for pair in PAIRS], num_rows=3, length=16, with_last=True
    )
    logps = answer_logps.answer_logps(model, batch.rows, adapters=False)
    return batch.replace(ref_logps=logps)


def rating_batch(model):
    batch = preference_batching.collate_ratings([[x] for x in RATINGS], num_rows=3, length=12)
    logps = [
        answer_logps.answer_logps(model, rows, adapters=False)
        for rows in (batch.rows, batch.foreign)
    ]
    return batch.replace(ref_logps=logps[0], ref_foreign_logps=logps[1])


def pair_loss(*names):
    config = dpo_trainer.DPOTrainingConfig(**arrangements.LOOP, loss_type=names)
    return dpo_trainer.make_objective(config)


KTO = kto_objective.KTOObjective(beta=0.1, desirable_weight=1.0, undesirable_weight=1.0)
CASES = {
    "aot": (pair_loss("aot"), pair_batch, lambda model: model),
    "kto": (KTO, rating_batch, lambda model: model),
    "reward": (
        reward_trainer.RewardObjective(),
        pair_batch,
        lambda model: reward_model.RewardModel(model, rngs=nnx.Rngs(0)),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_every_pass_of_training_drops_anew_and_evaluation_nothing(case):
    objective, make_batch, wrap = CASES[case]
    plain, dropping = adapted(dropout=0.0), adapted()
    batch = make_batch(plain)
    model = wrap(dropping)
    want = float(objective.loss(wrap(plain), batch).loss_sum)
    first, second = (float(objective.loss(model, batch).loss_sum) for _ in range(2))
    assert len({first, second, want}) == 3
    model.eval()
    assert float(objective.loss(model, batch).loss_sum) == want


def test_the_loss_is_that_of_the_key_and_its_prompts_drop_once_for_both_answers():
    model = adapted()
    batch = pair_batch(model)
    stream = nnx.clone(model.adapter_dropout)
    found = pair_loss("sigmoid").loss(model, batch)
    logps = answer_logps.answer_logps(model, batch.rows, dropout_key=stream())
    pairs, valid = pair_objective.pairs_of(logps, batch)
    margin = 0.1 * (pairs.chosen_ratio - pairs.rejected_ratio)
    assert valid.all()
    np.testing.assert_allclose(found.loss_sum, -jax.nn.log_sigmoid(margin).sum(), rtol=1e-6)
    # First tokens of both answers: predicted from the prompt's last state, which is one.
    same = preference_batching.collate_pairs(
        [[pair.__class__(pair.prompt, pair.chosen, pair.chosen)] for pair in PAIRS[:1]],
        num_rows=1,
        length=16,
    )
    assert len(PAIRS[0].chosen.tokens) == 1
    one, other = answer_logps.answer_logps(model, same.rows, dropout_key=jax.random.key(2))[0]
    assert one == other


def test_what_examples_are_compared_with_drops_nothing():
    """So that a step of one micro-batch is one of several."""
    objective, make_batch, _ = CASES["aot"]
    model = adapted()
    batch = make_batch(model)
    (context,) = objective.couple([objective.statistics(adapted(dropout=0.0), batch)])
    again = nnx.clone(model)
    alone, told = objective.loss(model, batch), objective.loss(again, batch, context)
    assert float(alone.loss_sum) == pytest.approx(float(told.loss_sum), rel=1e-6)


def test_the_reference_drops_nothing_and_a_resumed_run_drops_on(tmp_path):
    def train(directory, *parts):
        for max_steps in parts:
            config = dpo_trainer.DPOTrainingConfig(
                **arrangements.LOOP,
                max_steps=max_steps,
                checkpoint_root_directory=str(directory),
            )
            trainer = dpo_trainer.DPOTrainer(adapted(), None, optax.sgd(0.5), config)
            batches = [helpers.padded(PAIRS), helpers.padded(PAIRS[::-1])] * 2
            trainer.train(batches)
            trainer.close()
        return trainer

    whole = train(tmp_path / "whole", 4)
    split = train(tmp_path / "split", 2, 4)
    toys.assert_bit_identical(split.state, whole.state)
    assert int(whole.state.variables["adapter_dropout.stream.count"]) == 4
    batch = helpers.padded(PAIRS)
    found = whole.model_input(batch)["batch"].ref_logps
    want = answer_logps.answer_logps(adapted(dropout=0.0), batch.rows, adapters=False)
    np.testing.assert_allclose(found, want, rtol=1e-6)
    assert jnp.array_equal(found, whole.model_input(batch)["batch"].ref_logps)
