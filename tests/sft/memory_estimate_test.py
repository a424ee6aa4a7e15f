"""The estimate against the compiler's own account, and what it says to people."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tunix.data.preference import preference_batches, preference_config, preference_tokens
from tunix.models import dummy_model_creator
from tunix.models.llama3 import model as llama3
from tunix.perf import machine
from tunix.sft import memory_estimate, peft_trainer
from tunix.sft.dpo import dpo_trainer


def trainer_of(optimizer, **changes):
    settings = {
        "num_layers": 6,
        "vocab_size": 2048,
        "embed_dim": 128,
        "hidden_dim": 384,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 32,
        "rope_theta": 1e4,
        "norm_eps": 1e-5,
        "precision": "exact",
    }
    config = llama3.ModelConfig(**settings | changes)
    model = dummy_model_creator.create_dummy_model(llama3.Llama3, config)
    options = peft_trainer.TrainingConfig(eval_every_n_steps=1, pbar_description=None)
    return peft_trainer.PeftTrainer(model, optimizer, options)


@pytest.mark.parametrize("remat", ["nothing_saveable", "dots_saveable", "none"])
def test_the_compiler_needs_about_what_was_estimated(remat):
    trainer = trainer_of(optax.adamw(1e-3), remat=remat)
    rows, length = 8, 512
    batch = {
        "input_tokens": np.ones((rows, length), np.int32),
        "input_mask": np.ones((rows, length), np.float32),
    }
    functions = trainer._stepper._step_functions()
    compiled = functions.single.lower(trainer.state, trainer._stepper.frozen, batch).compile()
    account = compiled.memory_analysis()
    found = trainer.memory_estimate(rows, length)
    assert found.trained + found.optimizer == pytest.approx(
        account.argument_size_in_bytes, rel=0.01
    )
    scratch = account.temp_size_in_bytes
    assert 0.75 * scratch < found.activations + found.gradients < 1.5 * scratch


@pytest.mark.slow
def test_it_holds_for_rows_of_a_prompt_with_two_answers():
    rng = np.random.default_rng(0)

    def ids(count):
        return rng.integers(0, 2000, count).astype(np.int32)

    def answer():
        return preference_tokens.Answer(ids(193), np.ones(193, bool))

    known = preference_tokens.RefLogps(-1.0, -2.0)
    pairs = [
        preference_tokens.TokenizedPair(ids(128), answer(), answer(), ref_logps=known)
        for _ in range(8)
    ]
    settings = preference_config.PreferenceDataConfig(batch_size=8)
    length = preference_batches.row_length(pairs, settings)
    batch = next(iter(preference_batches.pair_batches(pairs, settings)))
    assert batch.rows.tokens.shape == (8, length) == (8, 512)

    options = dpo_trainer.DPOTrainingConfig(eval_every_n_steps=1, pbar_description=None)
    model = trainer_of(optax.sgd(0.1)).model
    trainer = dpo_trainer.DPOTrainer(model, None, optax.adamw(1e-3), options)
    functions = trainer._stepper._step_functions()
    inputs = trainer.model_input(batch)
    compiled = functions.single.lower(trainer.state, trainer._stepper.frozen, inputs).compile()
    scratch = compiled.memory_analysis().temp_size_in_bytes
    found = trainer.memory_estimate(8, length)
    assert 0.75 * scratch < found.activations + found.gradients < 1.5 * scratch


def test_what_has_a_shape_is_counted_exactly():
    params = {"w": jnp.zeros((3, 5), jnp.bfloat16), "b": jnp.zeros(7)}
    frozen = {"base": jnp.zeros((2, 2), jnp.uint8)}
    state = optax.adam(0.1).init(params)
    found = memory_estimate.estimate(params, frozen, state, None, rows=8, length=9)
    assert (found.trained, found.gradients, found.frozen) == (58, 58, 4)
    assert found.optimizer == 2 * 58 + 4
    assert found.activations == 0
    assert found.total == 58 + 58 + 4 + 120


def test_activations_grow_with_tokens_and_with_what_is_kept():
    config = trainer_of(optax.sgd(0.1)).model.config
    small = memory_estimate.activation_bytes(config, 100_000)
    assert memory_estimate.activation_bytes(config, 200_000) > 1.9 * small
    everything = trainer_of(optax.sgd(0.1), remat="none").model.config
    assert memory_estimate.activation_bytes(everything, 100_000) > 5 * small


def test_what_does_not_fit_comes_with_remedies():
    found = memory_estimate.MemoryEstimate(
        trained=8_000_000_000,
        frozen=0,
        optimizer=16_000_000_000,
        gradients=8_000_000_000,
        activations=1_000_000_000,
    )
    assert memory_estimate.warning(found, 40_000_000_000) is None
    assert memory_estimate.warning(found, None) is None
    text = memory_estimate.warning(found, 24_000_000_000)
    assert "about 33.00 GB" in text
    assert "24.00 GB free" in text
    assert "LoRA" in text
    assert "frozen" not in text  # there is none


def test_the_host_lends_its_memory_where_devices_have_none(monkeypatch):
    monkeypatch.setattr(machine, "host_bytes_available", lambda: 123)
    assert memory_estimate.available_bytes() == 123
    monkeypatch.setattr(machine, "device_bytes_limit", lambda: 80)
    assert memory_estimate.available_bytes() % 80 == 0
