"""After the first optimizer step of a run nothing compiles, whatever its batches hold."""

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from tests.data import tokenizers
from tests.sft import toys
from tests.sft.dpo import helpers
from tunix.data import sft_config, sft_data, tokenize
from tunix.data.preference import preference_batches, preference_config
from tunix.perf import compile_counter
from tunix.sft import peft_trainer
from tunix.sft.dpo import dpo_trainer, kto_trainer, reward_model, reward_trainer

FORWARD_AND_BACKWARD = ("jit(single)", "jit(accumulate)")
UPDATE = ("jit(apply)", "jit(_zeros)")


def settings(tmp_path, **changes):
    return {
        "eval_every_n_steps": 2,
        "pbar_description": None,
        "checkpoint_root_directory": str(tmp_path),
        **changes,
    }


def examples(seed=0):
    """Eleven examples of 2 to 29 tokens, of which few or many are trained."""
    rng = np.random.default_rng(seed)
    found = []
    for length in (3, 29, 7, 2, 18, 25, 4, 11, 9, 27, 5):
        weights = (rng.random(length) < rng.random()).astype(np.float32)
        weights[-1] = 1.0
        found.append(tokenize.TokenizedExample(helpers.tokens(rng, length), weights))
    return found


def assert_compiles_only_before_the_second_step(trainer, train_ds, eval_ds, *, steps):
    jax.clear_caches()  # what other tests have compiled counts here, too
    with compile_counter.CompileCounter() as counter:
        trainer.train(train_ds, eval_ds)
    trainer.close()
    totals = [
        int(total)
        for total in trainer.metrics_logger.get_metric_history("", "system/compiles_total", "train")
    ]
    assert (trainer.train_steps, len(totals)) == (steps, steps), totals
    assert counter.names[totals[0] :] == (), counter.names[totals[0] :]
    losses = [name for name in counter.names if name in FORWARD_AND_BACKWARD]
    assert len(losses) == 1, counter.names
    updates = [name for name in counter.names if name in UPDATE]
    assert len(updates) == (2 if losses == ["jit(accumulate)"] else 0)


@pytest.mark.parametrize(
    ("packing", "accumulation", "steps"),
    [
        pytest.param(False, None, 6, id="ragged rows, of which the last batch has fewer"),
        pytest.param(True, None, 3, id="packed"),
        pytest.param(False, 4, 3, id="a last step of fewer micro-batches"),
    ],
)
def test_supervised_tuning(tmp_path, packing, accumulation, steps):
    trainer = peft_trainer.PeftTrainer(
        toys.tiny_decoder(),
        optax.adam(1e-3),
        peft_trainer.TrainingConfig(**settings(tmp_path, gradient_accumulation_steps=accumulation)),
    )
    data = {"batch_size": 2, "max_target_length": 32, "packing": packing}
    epochs = 2 if accumulation else 1
    batches = sft_data.make_batches(
        examples(), tokenizers.make(), sft_config.SftDataConfig(num_epochs=epochs, **data)
    )
    held_out = sft_data.make_batches(
        examples(1)[:3], tokenizers.make(), sft_config.SftDataConfig(**data)
    )
    assert_compiles_only_before_the_second_step(trainer, batches, held_out, steps=steps)


@pytest.mark.parametrize("accumulation", [None, 2])
@pytest.mark.parametrize("kind", ["dpo", "kto", "reward"])
def test_preferences(tmp_path, kind, accumulation):
    loop = settings(tmp_path, gradient_accumulation_steps=accumulation)
    model, reference = toys.tiny_decoder(), toys.tiny_decoder(seed=1)
    data = preference_config.PreferenceDataConfig(
        batch_size=2, last_batch="keep", num_epochs=accumulation or 1
    )
    make, found = preference_batches.pair_batches, helpers.pairs(9)
    options = {}
    if kind == "dpo":
        config = dpo_trainer.DPOTrainingConfig(**loop)
        trainer = dpo_trainer.DPOTrainer(model, reference, optax.adam(1e-3), config)
    elif kind == "kto":
        make, found = preference_batches.rating_batches, helpers.ratings(9)
        config = kto_trainer.KTOTrainingConfig(**loop)
        trainer = kto_trainer.KTOTrainer(model, reference, optax.adam(1e-3), config)
    else:
        options = {"with_last": True}
        config = reward_trainer.RewardTrainingConfig(**loop)
        scored = reward_model.RewardModel(model, rngs=nnx.Rngs(0))
        trainer = reward_trainer.RewardTrainer(scored, optax.adam(1e-3), config)
    batches = make(found, data, **options)
    held_out = make(found[:3], data, **options)
    assert_compiles_only_before_the_second_step(trainer, batches, held_out, steps=5)


def test_a_batch_of_another_shape_compiles_and_a_warning_says_what(caplog):
    trainer = peft_trainer.PeftTrainer(
        toys.tiny_decoder(),
        optax.adam(1e-3),
        peft_trainer.TrainingConfig(
            eval_every_n_steps=9, pbar_description=None, max_inflight_computations=1
        ),
    )
    jax.clear_caches()
    trainer.train([toys.token_batch(2, length) for length in (8, 8, 9)])
    history = trainer.metrics_logger.get_metric_history("", "system/compiles", "train")
    assert history[1] == 0
    assert history[2] >= 1
    (warning,) = [record.message for record in caplog.records if "compile" in record.message]
    assert "jit(single)" in warning
