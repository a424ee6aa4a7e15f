"""Our Qwen 2 and that of transformers compute the same logits from the same files."""

import dataclasses

import pytest

from tests.models import hf_llama, hf_qwen
from tunix.models.hf import hf_config
from tunix.models.transformer import layout
from tunix.ops import rope
from tunix.utils import config as config_lib

WINDOW = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 4.0,
    "beta_slow": 0.2,
}
"""With the four frequencies of a tiny head: one is kept, two blended, one stretched."""
DYNAMIC = {"rope_scaling": {"rope_type": "dynamic", "factor": 3.0}, "max_position_embeddings": 16}

CASES = {
    "grouped-query heads": {},
    "one key head per query head": {"num_key_value_heads": 4},
    "tied embeddings": {"tie_word_embeddings": True},
    "windows in the upper layers": {"num_hidden_layers": 3, **WINDOW},
    "windows by layer type": {
        "use_sliding_window": True,
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "yarn": {"rope_scaling": YARN},
    "yarn, whole channels not needed": {"rope_scaling": YARN | {"truncate": False}},
    "yarn with a factor of attention": {"rope_scaling": YARN | {"attention_factor": 0.8}},
    "dynamic, beyond the original length": DYNAMIC,
    "dynamic, within the original length": DYNAMIC | {"max_position_embeddings": 64},
}


@pytest.mark.parametrize("case", CASES)
def test_logits_match_transformers_in_both_layouts(case, tmp_path):
    hf = hf_qwen.saved(tmp_path, "qwen2", **CASES[case])
    model = hf_qwen.load(tmp_path)
    assert hf_llama.logits_error(model, hf) < 1e-5
    assert hf_llama.logits_error(layout.unroll_layers(model), hf) < 1e-5


def test_yarn_matches_beyond_the_original_length(tmp_path):
    hf = hf_qwen.saved(tmp_path, "qwen2", rope_scaling=YARN)
    ids = hf_llama.tokens(shape=(1, 150))
    assert hf_llama.logits_error(hf_qwen.load(tmp_path), hf, ids) < 1e-5


def test_the_base_of_dynamic_scaling_belongs_to_the_row(tmp_path):
    """Rows of one batch: transformers would stretch the short one too, so it goes alone there."""
    hf = hf_qwen.saved(tmp_path, "qwen2", **DYNAMIC)
    model = hf_qwen.load(tmp_path)
    for length in (9, 40):
        assert hf_llama.logits_error(model, hf, hf_llama.tokens(shape=(1, length))) < 1e-5


@pytest.mark.parametrize("scanned", [True, False], ids=["scanned", "unrolled"])
def test_decoding_with_a_cache_gives_the_logits_of_the_full_forward(scanned, tmp_path):
    hf_qwen.saved(tmp_path, "qwen2", num_hidden_layers=3, **WINDOW)
    model = hf_qwen.load(tmp_path, scan_layers=scanned)
    assert model.config.is_local == (False, False, True)
    assert hf_qwen.cached_error(model, hf_llama.tokens(shape=(2, 8))) < 5e-6


def mutations(config):
    """Every change of one value that should change the function and no weight's shape."""
    yield {"rope_theta": 2 * config.rope_theta}
    yield {"norm_eps": 1e-2}
    yield {"sliding_window_size": 4}
    yield {"attention_types": ("local", "global", "global")}
    yield {"rope_scaling": None}
    for field, value in (
        ("factor", 8.0),
        ("original_max_position", 128),
        ("beta_fast", 3.0),
        ("beta_slow", 0.4),
        ("attention_factor", 0.9),
        ("truncate", True),
        ("kind", "linear"),
    ):
        yield {"rope_scaling": dataclasses.replace(config.rope_scaling, **{field: value})}


def test_parity_notices_every_field(tmp_path):
    """A field nobody reads would pass the tests above; it must not pass this one."""
    yarn = YARN | {"truncate": False}
    hf = hf_qwen.saved(tmp_path, "qwen2", num_hidden_layers=3, rope_scaling=yarn, **WINDOW)
    raw = hf_config.read_config(tmp_path / "config.json")
    config = hf_config.config_from_hf(raw, precision="exact")
    assert hf_llama.logits_error(hf_qwen.reload(tmp_path, "qwen2", config), hf) < 1e-5
    for change in mutations(config):
        changed = dataclasses.replace(config, **change)
        model = hf_qwen.reload(tmp_path, "qwen2", changed)
        assert hf_llama.logits_error(model, hf) > 1e-4, change


@pytest.mark.parametrize(
    "change", [{"factor": 2.0}, {"original_max_position": 20}, {"kind": "linear"}], ids=str
)
def test_parity_notices_every_field_of_dynamic_scaling(change, tmp_path):
    hf = hf_qwen.saved(tmp_path, "qwen2", **DYNAMIC)
    raw = hf_config.read_config(tmp_path / "config.json")
    config = hf_config.config_from_hf(raw, precision="exact")
    assert config.rope_scaling == rope.RopeScaling(
        kind="dynamic", factor=3.0, original_max_position=16
    )
    scaling = dataclasses.replace(config.rope_scaling, **change)
    changed = dataclasses.replace(config, rope_scaling=scaling)
    assert hf_llama.logits_error(hf_qwen.reload(tmp_path, "qwen2", changed), hf) > 1e-4


@pytest.mark.parametrize("change", [{"qkv_bias": False}, {"o_bias": True}], ids=str)
def test_a_bias_that_only_one_side_has_does_not_fit_the_checkpoint(change, tmp_path):
    hf_qwen.saved(tmp_path, "qwen2")
    raw = hf_config.read_config(tmp_path / "config.json")
    config = dataclasses.replace(hf_config.config_from_hf(raw), **change)
    with pytest.raises(ValueError, match="does not fit the model"):
        hf_qwen.reload(tmp_path, "qwen2", config)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"max_window_layers": -1}, "max_window_layers must be 0 or a positive integer"),
        (
            {"layer_types": ["full_attention", "sliding_attention"]},
            "layer_types has 'sliding_attention' although use_sliding_window is false",
        ),
        ({"use_sliding_window": "no"}, "use_sliding_window must be true or false, got 'no'"),
    ],
)
def test_what_cannot_be_represented_is_named_with_its_value(fields, message):
    raw = {"model_type": "qwen2", **hf_llama.SIZES, "num_hidden_layers": 2} | fields
    with pytest.raises(config_lib.ConfigError) as error:
        hf_config.config_from_hf(raw)
    assert len(error.value.problems) == 1
    assert message in error.value.problems[0]
