"""Configs of Gemma 1 and 2, of every age, say what transformers takes them to say."""

import pytest
import transformers

from tests.models import hf_gemma
from tunix.models.gemma import hf_layout
from tunix.models.gemma import model as model_lib
from tunix.models.hf import hf_config
from tunix.utils import config as config_lib

# As published in February 2024 with Gemma 2B.
GEMMA_2B = {
    "architectures": ["GemmaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "head_dim": 256,
    "hidden_act": "gelu",
    "hidden_activation": None,
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 16384,
    "max_position_embeddings": 8192,
    "model_type": "gemma",
    "num_attention_heads": 8,
    "num_hidden_layers": 18,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.38.0.dev0",
    "use_cache": True,
    "vocab_size": 256000,
}

# As published in June 2024 with Gemma 2 27B.
GEMMA2_27B = GEMMA_2B | {
    "architectures": ["Gemma2ForCausalLM"],
    "attn_logit_softcapping": 50.0,
    "cache_implementation": "hybrid",
    "final_logit_softcapping": 30.0,
    "head_dim": 128,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 4608,
    "intermediate_size": 36864,
    "model_type": "gemma2",
    "num_attention_heads": 32,
    "num_hidden_layers": 46,
    "num_key_value_heads": 16,
    "query_pre_attn_scalar": 144,
    "sliding_window": 4096,
    "sliding_window_size": 4096,
    "transformers_version": "4.42.0.dev0",
}


@pytest.mark.parametrize(
    ("raw", "preset"),
    [
        (GEMMA_2B, model_lib.ModelConfig.gemma_2b()),
        (GEMMA2_27B, model_lib.ModelConfig.gemma2_27b()),
    ],
    ids=["Gemma 2B", "Gemma 2 27B"],
)
def test_a_published_file_is_the_preset(raw, preset):
    assert hf_config.config_from_hf(raw) == preset


@pytest.mark.parametrize("make", [hf_gemma.gemma, hf_gemma.gemma2])
def test_a_config_written_by_transformers_is_read(make, tmp_path):
    theirs = make().config
    theirs.save_pretrained(tmp_path)
    ours = hf_config.config_from_hf(hf_config.read_config(tmp_path / "config.json"))
    assert (ours.num_layers, ours.head_dim) == (3, 12)
    if make is hf_gemma.gemma2:
        assert ours.attention_types == ("local", "global")
        assert (ours.attn_logit_softcap, ours.final_logit_softcap) == (0.5, 0.7)
        assert (ours.query_pre_attn_scalar, ours.sliding_window_size) == (20.0, 5)


PRESETS = [name for name, member in vars(model_lib.ModelConfig).items() if "gemma" in name]


@pytest.mark.parametrize("preset", PRESETS)
def test_what_is_written_is_read_back(preset):
    config = getattr(model_lib.ModelConfig, preset)()
    assert hf_config.config_from_hf(hf_layout.write_config(config)) == config


@pytest.mark.parametrize("preset", ["gemma_2b", "gemma2_27b"])
def test_transformers_reads_what_is_written(preset):
    config = getattr(model_lib.ModelConfig, preset)(
        activation="gelu", qkv_bias=True, o_bias=True, weight_tying=False
    )
    raw = hf_layout.write_config(config)
    theirs = transformers.AutoConfig.for_model(**raw)
    assert type(theirs).__name__.startswith("Gemma2" if "gemma2" in preset else "GemmaC")
    assert hf_config.config_from_hf(theirs.to_dict()) == config


@pytest.mark.parametrize(
    ("fields", "activation"),
    [
        ({"hidden_act": "gelu"}, "gelu_tanh"),
        ({"hidden_act": None}, "gelu_tanh"),
        ({"hidden_act": "gelu_pytorch_tanh"}, "gelu_tanh"),
        ({"hidden_act": "gelu_python"}, "gelu"),
        ({"hidden_act": None, "hidden_activation": "gelu"}, "gelu"),
        ({"hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh"}, "gelu_tanh"),
        ({"hidden_act": "silu"}, "silu"),
        ({"model_type": "gemma2", "hidden_act": "silu"}, "gelu_tanh"),
        ({"model_type": "gemma2", "hidden_activation": "gelu"}, "gelu"),
    ],
)
def test_gelu_in_the_first_files_means_its_tanh_approximation(fields, activation):
    assert hf_config.config_from_hf(GEMMA_2B | fields).activation == activation


def test_a_cap_that_is_null_is_none_and_one_that_is_absent_the_published_one():
    raw = {key: value for key, value in GEMMA2_27B.items() if key != "final_logit_softcapping"}
    config = hf_config.config_from_hf(raw | {"attn_logit_softcapping": None})
    assert (config.attn_logit_softcap, config.final_logit_softcap) == (None, 30.0)


def test_global_layers_alone_have_no_window():
    config = hf_config.config_from_hf(GEMMA2_27B | {"layer_types": ["full_attention"] * 46})
    assert (config.attention_types, config.sliding_window_size) == (("global",), None)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_activation": "relu"}, "hidden_activation is 'relu'"),
        ({"hidden_activation": "silu"}, "two activations: {'hidden_act': 'gelu'"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ({"attention_dropout": 0.1}, "attention_dropout is 0.1"),
        ({"num_key_value_heads": None}, "num_key_value_heads is missing"),
        ({"model_type": "gemma2", "sliding_window": None}, "sliding_window is missing"),
        ({"model_type": "gemma2", "layer_types": ["full_attention"]}, "a list of 18 layers"),
        (
            {"model_type": "gemma2", "layer_types": ["chunked_attention"] * 18},
            "layer_types must be of ['full_attention', 'sliding_attention'], got "
            "['chunked_attention']",
        ),
        (
            {"model_type": "gemma2", "attn_logit_softcapping": -1.0},
            "attn_logit_softcapping must be a positive number, got -1.0",
        ),
    ],
)
def test_what_cannot_be_represented_is_named_with_its_value(fields, message):
    with pytest.raises(config_lib.ConfigError) as error:
        hf_config.config_from_hf(GEMMA_2B | fields)
    assert len(error.value.problems) == 1
    assert message in error.value.problems[0]
