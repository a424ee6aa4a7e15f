"""A Hugging Face config is understood, or refused with every reason."""

import pytest
import transformers

from tests.models import hf_llama
from tunix.models import families
from tunix.models.hf import hf_config
from tunix.models.llama3 import model as llama3
from tunix.ops import rope
from tunix.utils import config as config_lib

RAW = {"model_type": "llama", **hf_llama.SIZES}


def problems_of(**changes):
    with pytest.raises(config_lib.ConfigError) as error:
        hf_config.config_from_hf(RAW | changes, where="some/config.json")
    assert "some/config.json" in str(error.value)
    return error.value.problems


def test_every_field_arrives():
    found = hf_config.config_from_hf(RAW | {"head_dim": 10, "tie_word_embeddings": True})
    assert found == llama3.ModelConfig(
        num_layers=3,
        vocab_size=67,
        embed_dim=32,
        hidden_dim=56,
        num_heads=4,
        num_kv_heads=2,
        head_dim=10,
        rope_theta=1e4,
        norm_eps=1e-5,
        weight_tying=True,
    )


def test_absent_fields_mean_what_transformers_says():
    optional = {"num_key_value_heads", "rms_norm_eps", "rope_theta", "tie_word_embeddings"}
    raw = {key: value for key, value in RAW.items() if key not in optional}
    theirs = transformers.LlamaConfig(**raw)
    ours = hf_config.config_from_hf(raw)
    assert ours.num_kv_heads == theirs.num_key_value_heads == 4
    assert ours.head_dim == theirs.head_dim == 8
    assert ours.norm_eps == theirs.rms_norm_eps
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    assert ours.weight_tying == theirs.tie_word_embeddings


def test_runtime_fields_are_passed_on():
    found = hf_config.config_from_hf(RAW, precision="exact", scan_layers=False)
    assert (found.precision, found.scan_layers) == ("exact", False)


@pytest.mark.parametrize(
    ("fields", "theta", "scaling"),
    [
        pytest.param({"rope_theta": 5e5}, 5e5, None, id="old style"),
        pytest.param({"rope_theta": 5e5, "rope_scaling": None}, 5e5, None, id="null scaling"),
        pytest.param(
            {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2}},
            5e5,
            rope.RopeScaling(kind="linear", factor=2.0),
            id="old name of the type",
        ),
        pytest.param(
            {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 7.0}},
            7.0,
            None,
            id="transformers 5",
        ),
        pytest.param(
            {"rope_scaling": {"type": "yarn", "factor": 4.0}},
            1e4,
            rope.RopeScaling(kind="yarn", factor=4.0, original_max_position=640),
            id="yarn, which takes the model's length where none is given",
        ),
        pytest.param(
            {
                "rope_scaling": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 64,
                    "beta_fast": 16,
                    "beta_slow": 2,
                    "attention_factor": 0.9,
                    "truncate": False,
                }
            },
            1e4,
            rope.RopeScaling(
                kind="yarn",
                factor=4.0,
                original_max_position=64,
                beta_fast=16.0,
                beta_slow=2.0,
                attention_factor=0.9,
                truncate=False,
            ),
            id="yarn with all its numbers",
        ),
        pytest.param(
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            1e4,
            rope.RopeScaling(kind="dynamic", factor=2.0, original_max_position=640),
            id="dynamic",
        ),
        pytest.param(
            {"rope_theta": 1e4, "rope_parameters": hf_llama.LLAMA3_SCALING | {"rope_theta": 1e4}},
            1e4,
            rope.RopeScaling(
                kind="llama3",
                factor=4.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position=160,
            ),
            id="llama3",
        ),
    ],
)
def test_both_ways_of_writing_rope(fields, theta, scaling):
    found = hf_config.config_from_hf(RAW | fields)
    assert found.rope_theta == theta
    assert found.rope_scaling == scaling


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"attention_bias": "yes"}, "attention_bias must be true or false, got 'yes'"),
        ({"pretraining_tp": 2}, "pretraining_tp is 2"),
        ({"attention_dropout": 0.1}, "attention_dropout is 0.1"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is {'bits': 4}"),
        (
            {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0]}},
            "rope_scaling has type 'longrope', which is not supported; known are "
            "['default', 'linear', 'dynamic', 'llama3', 'yarn']",
        ),
        (
            {"rope_scaling": {"rope_type": "lama3", "factor": 2.0}},
            "(did you mean 'llama3'?)",
        ),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "mscale": 0.7}},
            "rope_scaling.mscale is 0.7, which is not supported (only no such field)",
        ),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "mscale_all_dim": 1.0}},
            "rope_scaling.mscale_all_dim is 1.0, which is not supported (only no such field)",
        ),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "truncate": 1}},
            "rope_scaling.truncate must be true or false, got 1",
        ),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "beta_fast": "x"}},
            "rope_scaling.beta_fast must be a positive number, got 'x'",
        ),
        (
            {
                "rope_scaling": {"rope_type": "dynamic", "factor": 2.0},
                "max_position_embeddings": None,
            },
            "max_position_embeddings is missing",
        ),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling.factor is missing"),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "beta_fast": 32}},
            "unknown key 'rope_scaling.beta_fast'",
        ),
        (
            {"rope_scaling": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            "rope_scaling.partial_rotary_factor is 0.5",
        ),
        ({"rope_parameters": {"rope_theta": 9.0}}, "two bases of the rotary frequencies"),
        (
            {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "linear"}},
            "rope_parameters and rope_scaling disagree",
        ),
        ({"rope_theta": "big"}, "rope_theta must be a positive number, got 'big'"),
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"num_hidden_layers": 3.5}, "num_hidden_layers must be a positive integer, got 3.5"),
        ({"num_hidden_layers": True}, "num_hidden_layers must be a positive integer, got True"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false, got 'yes'"),
    ],
)
def test_what_cannot_be_represented_is_named_with_its_value(fields, message):
    found = problems_of(**fields)
    assert len(found) == 1
    assert message in found[0]


def test_all_problems_come_at_once():
    found = problems_of(hidden_act="relu", pretraining_tp=2, hidden_size=0, rope_theta=-1.0)
    assert len(found) == 4


def test_a_misspelt_field_is_recognised():
    raw = {key: value for key, value in RAW.items() if key != "intermediate_size"}
    with pytest.raises(config_lib.ConfigError, match="did you mean 'intermediate_sizes'"):
        hf_config.config_from_hf(raw | {"intermediate_sizes": 56})


def test_a_size_that_no_model_can_have_is_an_error_of_the_model_config():
    with pytest.raises(config_lib.ConfigError, match="multiple of num_kv_heads"):
        hf_config.config_from_hf(RAW | {"num_key_value_heads": 3})


@pytest.mark.parametrize(
    ("found", "hint"), [("lama", "did you mean 'llama'"), ("bert", "known are"), (None, "None")]
)
def test_an_unknown_model_type_lists_the_known_ones(found, hint):
    assert hint in problems_of(model_type=found)[0]


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_file_that_is_no_json_object_is_named(text, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(config_lib.ConfigError, match=r"config\.json"):
        hf_config.read_config(path)


def test_a_config_written_by_transformers_is_read(tmp_path):
    hf_llama.make().config.save_pretrained(tmp_path)
    raw = hf_config.read_config(tmp_path / "config.json")
    assert hf_config.config_from_hf(raw) == hf_config.config_from_hf(RAW)


STRANGE = (
    [],
    ["llama"],
    [[]],
    {},
    {"a": {}},
    {"rope_type": ["yarn"]},
    {"rope_type": "linear", "factor": 10**400},
    {"full_attention": 3, "sliding_attention": [1]},
    "",
    "x" * 10_000,
    0,
    -1,
    1.5,
    True,
    10**9,
    10**400,
    float("nan"),
    float("inf"),
)
"""What may stand where something else was meant."""


def strange_configs():
    """Yield a model type, a field and a config that says something strange there."""
    text = {"hidden_activation": "gelu_pytorch_tanh"} | hf_llama.SIZES
    more = ("layer_types", "sliding_window", "max_window_layers", "use_sliding_window")
    more += ("rope_parameters", "num_experts", "sliding_window_pattern", "quantization_config")
    more += ("max_position_embeddings", "hidden_act", "attention_bias", "query_pre_attn_scalar")
    for family in families.FAMILIES.values():
        for kind in family.hf_types:
            raw = {"model_type": kind, **text}
            if kind == "gemma3":
                raw = {"model_type": kind, "text_config": text, "vision_config": {}}
            for name in (*raw, *more):
                yield kind, name, raw


def message_of(raw):
    """Return why a config is refused, ``None`` if it is read; anything else is a fault."""
    try:
        hf_config.config_from_hf(raw, where="some/config.json")
    except config_lib.ConfigError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("name", "raw"),
    [pytest.param(name, raw, id=f"{kind}-{name}") for kind, name, raw in strange_configs()],
)
def test_a_strange_value_is_read_or_refused_with_file_and_reason(name, raw):
    for value in STRANGE:
        message = message_of(raw | {name: value})
        assert message is None or "Hugging Face config some/config.json" in message
        assert message is None or len(message) < 2000


@pytest.mark.parametrize("found", [["llama"], {"a": 1}, 5, True, "x" * 10_000], ids=type)
def test_a_model_type_that_is_no_name_is_refused(found):
    (problem,) = problems_of(model_type=found)
    assert "which is not supported; known are" in problem
    assert len(problem) < 500


@pytest.mark.parametrize(
    ("name", "value", "most"),
    [
        ("num_hidden_layers", 10**9, "10,000"),
        ("num_hidden_layers", 10_001, "10,000"),
        ("vocab_size", 2**31, "16,777,216"),
        ("hidden_size", 10**30, "16,777,216"),
    ],
)
def test_a_size_beyond_all_models_is_refused_with_the_limit(name, value, most):
    (problem,) = problems_of(**{name: value})
    assert problem.startswith(f"{name} must be a positive integer of at most {most}, got ")


@pytest.mark.parametrize(
    "data",
    [b"5", b"", b"\xff", b"[" * 100_000, b'{"a": ' + b"1" * 10_000 + b"}", b'{"a": 1, "a": 2}'],
    ids=["a number", "empty", "no text", "nested", "digits", "a field twice"],
)
def test_a_file_of_anything_else_is_named(data, tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(data)
    with pytest.raises(config_lib.ConfigError) as error:
        hf_config.read_config(path)
    assert str(path) in str(error.value)
