import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from tunix.rl.reward_fns import reward_model as reward_fn
from tunix.sft.dpo import reward_model_files

SIZES = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "num_labels": 1,
}
CONFIGS = {
    "llama": transformers.LlamaConfig(**SIZES, tie_word_embeddings=False),
    "qwen3": transformers.Qwen3Config(**SIZES, head_dim=8, tie_word_embeddings=True),
}


def write(folder, config):
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("family", list(CONFIGS))
def test_completions_get_the_score_that_transformers_gives_them(tmp_path, family):
    theirs = write(tmp_path, CONFIGS[family])
    ours = reward_model_files.load_reward_model(tmp_path, precision="exact")
    rng = np.random.default_rng(0)
    prompts = [rng.integers(1, 61, n) for n in (5, 3, 7)]
    completions = [rng.integers(1, 61, n) for n in (4, 6, 1)]
    expected = []
    with torch.no_grad():
        for pair in zip(prompts, completions, strict=True):
            tokens = torch.tensor(np.concatenate(pair))[None]
            expected.append(float(theirs(tokens, attention_mask=torch.ones_like(tokens)).logits))
    score = reward_fn.ModelReward(reward_fn.RewardModelScores(ours, length_multiple=16))
    np.testing.assert_allclose(score(prompts, completions), expected, atol=1e-5)
    assert np.std(expected) > 1e-3


def test_weights_can_be_stored_in_fewer_bits(tmp_path):
    write(tmp_path, CONFIGS["llama"])
    model = reward_model_files.load_reward_model(tmp_path, dtype="bfloat16")
    assert model.decoder.layers.mlp.up_proj.w.dtype == jnp.bfloat16
    assert model.score.dtype == jnp.float32


def test_what_is_no_reward_model_is_refused(tmp_path, tiny_model):
    with pytest.raises(reward_model_files.RewardModelFileError, match="holds no score"):
        reward_model_files.load_reward_model(tiny_model)
    write(tmp_path, transformers.LlamaConfig(**SIZES | {"num_labels": 3}))
    with pytest.raises(reward_model_files.RewardModelFileError, match=r"\(3, 16\), expected"):
        reward_model_files.load_reward_model(tmp_path)
