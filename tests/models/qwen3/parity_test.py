"""Our Qwen 3 and that of transformers compute the same logits from the same files."""

import dataclasses

import pytest

from tests.models import hf_llama, hf_qwen
from tunix.models.hf import hf_config
from tunix.models.transformer import layout
from tunix.utils import config as config_lib

WINDOW = {"use_sliding_window": True, "sliding_window": 5}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}

CASES = {
    "dense": ("qwen3", {}),
    "dense, tied, a head per key head": (
        "qwen3",
        {"tie_word_embeddings": True, "num_key_value_heads": 4},
    ),
    "dense, biases": ("qwen3", {"attention_bias": True}),
    "dense, windows": ("qwen3", {"max_window_layers": 1, **WINDOW}),
    "dense, yarn": ("qwen3", {"rope_scaling": YARN}),
    "experts": ("qwen3_moe", {}),
    "experts, one a token": ("qwen3_moe", {"num_experts_per_tok": 1}),
    "experts, all of them": ("qwen3_moe", {"num_experts_per_tok": 6}),
    "experts, weights not normalised": ("qwen3_moe", {"norm_topk_prob": False}),
    "experts, windows, biases, tied": (
        "qwen3_moe",
        {"attention_bias": True, "tie_word_embeddings": True, **WINDOW},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_match_transformers_in_both_layouts(case, tmp_path):
    kind, changes = CASES[case]
    hf = hf_qwen.saved(tmp_path, kind, **changes)
    model = hf_qwen.load(tmp_path)
    assert hf_llama.logits_error(model, hf) < 1e-5
    assert hf_llama.logits_error(layout.unroll_layers(model), hf) < 1e-5


@pytest.mark.parametrize("scanned", [True, False], ids=["scanned", "unrolled"])
@pytest.mark.parametrize("kind", ["qwen3", "qwen3_moe"])
def test_decoding_with_a_cache_gives_the_logits_of_the_full_forward(kind, scanned, tmp_path):
    hf_qwen.saved(tmp_path, kind)
    model = hf_qwen.load(tmp_path, scan_layers=scanned)
    assert hf_qwen.cached_error(model, hf_llama.tokens(shape=(2, 8))) < 5e-6


def config_of(folder):
    raw = hf_config.read_config(folder / "config.json")
    return hf_config.config_from_hf(raw, precision="exact")


MUTATIONS = [
    ("qwen3", {"rope_theta": 2e4}),
    ("qwen3", {"norm_eps": 1e-2}),
    ("qwen3", {"sliding_window_size": 4}),
    ("qwen3", {"attention_types": ("local", "global")}),
    ("qwen3_moe", {"rope_theta": 2e4}),
    ("qwen3_moe", {"norm_eps": 1e-2}),
    ("qwen3_moe", {"num_experts_per_tok": 3}),
    ("qwen3_moe", {"norm_topk_prob": False}),
    ("qwen3_moe", {"sliding_window_size": 4}),
    ("qwen3_moe", {"activation": "gelu"}),
]


@pytest.fixture(scope="module")
def windowed(tmp_path_factory):
    """One checkpoint of each kind: its folder, its config and the model of transformers."""
    found = {}
    for kind in ("qwen3", "qwen3_moe"):
        folder = tmp_path_factory.mktemp(kind)
        hf = hf_qwen.saved(folder, kind, max_window_layers=1, **WINDOW)
        config = config_of(folder)
        assert hf_llama.logits_error(hf_qwen.reload(folder, "qwen3", config), hf) < 1e-5
        found[kind] = folder, config, hf
    return found


@pytest.mark.parametrize(("kind", "change"), MUTATIONS, ids=str)
def test_parity_notices_every_field(kind, change, windowed):
    """A field nobody reads would pass the tests above; it must not pass this one."""
    folder, config, hf = windowed[kind]
    model = hf_qwen.reload(folder, "qwen3", dataclasses.replace(config, **change))
    assert hf_llama.logits_error(model, hf) > 1e-4


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("qwen3", {"qk_norm": False}),
        ("qwen3", {"qkv_bias": True}),
        ("qwen3", {"o_bias": True}),
        ("qwen3_moe", {"num_experts": 5}),
        ("qwen3_moe", {"num_experts": 7}),
        ("qwen3_moe", {"hidden_dim": 20}),
        ("qwen3_moe", {"num_experts": None, "num_experts_per_tok": None}),
    ],
    ids=str,
)
def test_a_wrong_size_does_not_fit_the_checkpoint(kind, change, windowed):
    folder, config, _ = windowed[kind]
    with pytest.raises(ValueError, match="does not fit the model"):
        hf_qwen.reload(folder, "qwen3", dataclasses.replace(config, **change))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mlp_only_layers": [0]}, "mlp_only_layers is [0], which is not supported (only [])"),
        ({"decoder_sparse_step": 2}, "decoder_sparse_step is 2, which is not supported (only 1)"),
        ({"num_experts": 0}, "num_experts must be a positive integer, got 0"),
        ({"norm_topk_prob": 1}, "norm_topk_prob must be true or false, got 1"),
        ({"attention_bias": "q"}, "attention_bias must be true or false, got 'q'"),
        ({"quantization_config": {"bits": 8}}, "quantization_config is {'bits': 8}"),
    ],
)
def test_what_cannot_be_represented_is_named_with_its_value(fields, message):
    raw = {"model_type": "qwen3_moe", **hf_llama.SIZES, **hf_qwen.MOE} | fields
    with pytest.raises(config_lib.ConfigError) as error:
        hf_config.config_from_hf(raw)
    assert len(error.value.problems) == 1
    assert message in error.value.problems[0]
