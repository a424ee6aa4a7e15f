import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.rl import helpers
from tunix.rl.reward_fns import reward_model as reward_fn
from tunix.rl.scoring import rewards
from tunix.sft.dpo import reward_model


@pytest.mark.slow
def test_completions_get_the_score_of_their_last_token_whatever_the_padding():
    model = reward_model.RewardModel(helpers.tiny_decoder(num_layers=1), rngs=nnx.Rngs(1))
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 61, n) for n in (3, 6, 2)]
    completions = [rng.integers(0, 61, n) for n in (4, 1, 5)]
    expected = []
    for prompt, completion in zip(prompts, completions, strict=True):
        tokens = jnp.asarray(np.concatenate([prompt, completion]))[None]
        hidden, _ = model.decoder.hidden(tokens)
        expected.append(float(hidden[0, -1] @ model.score[...]))
    scores = reward_fn.RewardModelScores(model, micro_batch_size=2, length_multiple=4)
    manager = rewards.RewardManager(reward_fn.ModelReward(scores))
    columns = {"prompt_ids": prompts, "completion_ids": completions}
    result = manager(["?"] * 3, ["!"] * 3, columns)
    np.testing.assert_allclose(result.total, expected, atol=1e-5)
    assert np.std(expected) > 1e-3
