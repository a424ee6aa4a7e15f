"""Noise has the size of the paper, is there in training only, and is found again at a resume."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from tests.sft import toys
from tunix.models.transformer import embedding_noise
from tunix.sft import neftune, peft_trainer


def noise_of(segments, *, width=64, alpha=5.0, key=0):
    make = embedding_noise.EmbeddingNoise(alpha, jax.random.key(key))
    segments = None if segments is None else jnp.asarray(segments, jnp.int32)
    shape = (2, 12, width) if segments is None else (*segments.shape, width)
    return make, np.asarray(make(jnp.zeros(shape), segments))


def test_noise_is_uniform_within_alpha_over_the_root_of_tokens_times_channels():
    _, noise = noise_of(None)
    bound = 5.0 / (12 * 64) ** 0.5
    assert np.abs(noise).max() <= bound
    np.testing.assert_allclose(np.abs(noise).max(), bound, rtol=0.01)
    np.testing.assert_allclose(noise.std(), bound / 3**0.5, rtol=0.05)
    assert abs(noise.mean()) < 0.1 * bound


def test_each_packed_example_has_noise_of_its_own_length():
    _, noise = noise_of([[1] * 2 + [2] * 8 + [0] * 2])
    for where, length in ((slice(0, 2), 2), (slice(2, 10), 8)):
        bound = 5.0 / (length * 64) ** 0.5
        np.testing.assert_allclose(np.abs(noise[0, where]).max(), bound, rtol=0.05)


def test_every_call_draws_anew_and_evaluation_draws_nothing():
    make, first = noise_of(None)
    second = np.asarray(make(jnp.zeros(first.shape), None))
    assert not np.allclose(first, second)
    np.testing.assert_array_equal(first, noise_of(None)[1])
    assert not np.allclose(first, noise_of(None, key=1)[1])
    make.eval()
    embeddings = jnp.ones(first.shape)
    assert make(embeddings, None) is embeddings


def trainer(directory=None, *, alpha=5.0):
    config = peft_trainer.TrainingConfig(
        eval_every_n_steps=2,
        pbar_description=None,
        checkpoint_root_directory=None if directory is None else str(directory),
        checkpointing_options=ocp.CheckpointManagerOptions(save_interval_steps=2),
    )
    model = toys.tiny_decoder()
    if alpha:
        neftune.add_noise(model, alpha, seed=3)
    return peft_trainer.PeftTrainer(model, optax.adam(0.01), config)


def losses(run, mode="train"):
    return run.metrics_logger.get_metric_history("", "loss", mode).tolist()


@pytest.mark.slow
def test_training_is_noisy_evaluation_is_not_and_a_resume_finds_the_noise_again(tmp_path):
    batch = toys.token_batch(2, 8)
    whole = trainer()
    before = whole.evaluate([batch])["loss"]
    plain = trainer(alpha=None)
    assert before == plain.evaluate([batch])["loss"]
    whole.train([batch] * 5)
    plain.train([batch])
    assert losses(whole)[0] != losses(plain)[0]
    first = trainer(tmp_path)
    first.train([batch] * 2)
    first.close()
    second = trainer(tmp_path)
    second.train([batch] * 5)
    assert losses(first) + losses(second) == losses(whole)
    second.close()


def test_what_cannot_have_noise_is_refused():
    with pytest.raises(TypeError, match="needs a tunix Decoder, got a Linear"):
        neftune.add_noise(toys.Linear(rngs=nnx.Rngs(0)), 5.0, seed=0)
    with pytest.raises(ValueError, match="alpha must be positive"):
        neftune.add_noise(toys.tiny_decoder(), 0.0, seed=0)
