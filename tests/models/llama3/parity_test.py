"""Our Llama and that of transformers compute the same logits from the same files."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import transformers

from tests.models import hf_llama
from tunix.models import automodel, families, safetensors_loader, weights
from tunix.models.hf import hf_config
from tunix.models.transformer import layout
from tunix.ops import rope

CASES = {
    "grouped-query heads": {},
    "one key head per query head": {"num_key_value_heads": 4},
    "one key head for all": {"num_key_value_heads": 1},
    "tied embeddings": {"tie_word_embeddings": True},
    "head width is not width / heads": {"head_dim": 12},
    "linear rope scaling": {"rope_scaling": {"rope_type": "linear", "factor": 3.0}},
    "llama 3 rope scaling": {"rope_scaling": hf_llama.LLAMA3_SCALING},
    "biases of attention": {"attention_bias": True},
    "biases of the MLP": {"mlp_bias": True},
    "yarn rope scaling": {
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
    "dynamic rope scaling, beyond the original length": {
        "rope_scaling": {"rope_type": "dynamic", "factor": 3.0},
        "max_position_embeddings": 16,
    },
    "large theta, one layer, large eps": {
        "rope_theta": 500_000.0,
        "num_hidden_layers": 1,
        "rms_norm_eps": 1e-2,
    },
}


def saved(folder, **changes):
    hf = hf_llama.make(**changes)
    hf.save_pretrained(folder)
    return hf


def load(folder, **options):
    return automodel.AutoModel.from_pretrained(str(folder), precision="exact", **options)[0]


def reload(folder, config):
    source = safetensors_loader.SafetensorsDirectory(folder)
    family = families.FAMILIES["llama3"]
    return weights.load_model(family.model_class, config, family.weights, source)


@pytest.mark.parametrize("case", CASES)
def test_logits_match_transformers(case, tmp_path):
    hf = saved(tmp_path, **CASES[case])
    model = load(tmp_path)
    assert hf_llama.logits_error(model, hf) < 1e-5
    assert hf_llama.logits_error(layout.unroll_layers(model), hf) < 1e-5


def test_scanned_and_unrolled_loading_give_the_same_weights_and_logits(tmp_path):
    hf = saved(tmp_path)
    scanned, unrolled = load(tmp_path), load(tmp_path, scan_layers=False)
    assert len(unrolled.layers) == 3
    for i in range(3):
        np.testing.assert_array_equal(
            unrolled.layers[i].mlp.up_proj.w[...], scanned.layers.mlp.up_proj.w[...][i]
        )
    assert hf_llama.logits_error(unrolled, hf) < 1e-5


def test_logits_match_when_the_checkpoint_is_sharded_over_files(tmp_path):
    hf = hf_llama.make()
    hf.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert hf_llama.logits_error(load(tmp_path), hf) < 1e-5


@pytest.mark.parametrize("scaling", [None, hf_llama.LLAMA3_SCALING], ids=["plain", "llama3"])
def test_config_files_of_older_transformers_mean_the_same(scaling, tmp_path):
    hf = saved(tmp_path, rope_scaling=scaling)
    path = tmp_path / "config.json"
    raw = json.loads(path.read_text())
    raw["torch_dtype"] = raw.pop("dtype")
    parameters = raw.pop("rope_parameters")
    raw["rope_theta"] = parameters.pop("rope_theta")
    raw["rope_scaling"] = scaling
    path.write_text(json.dumps(raw))
    assert hf_llama.logits_error(load(tmp_path), hf) < 1e-5


def mutations(config):
    """Every change of one value that should change the function.

    Fields that add or remove weights, or change their shapes, need no case: a wrong one
    makes the checkpoint not fit the model.
    """
    yield "rope_theta", 2 * config.rope_theta
    yield "norm_eps", 1e-2
    yield "rope_scaling", None
    for field, value in (
        ("factor", 8.0),
        ("low_freq_factor", 2.0),
        ("high_freq_factor", 6.0),
        ("original_max_position", 64),
        ("kind", "linear"),
    ):
        yield "rope_scaling", dataclasses.replace(config.rope_scaling, **{field: value})


def test_parity_notices_every_field(tmp_path):
    """A field nobody reads would pass the tests above; it must not pass this one."""
    hf = saved(tmp_path, rope_scaling=hf_llama.LLAMA3_SCALING)
    config = hf_config.config_from_hf(
        hf_config.read_config(tmp_path / "config.json"), precision="exact"
    )
    assert hf_llama.logits_error(reload(tmp_path, config), hf) < 1e-5
    changes = list(mutations(config))
    assert len(changes) == 8
    for field, value in changes:
        changed = dataclasses.replace(config, **{field: value})
        assert hf_llama.logits_error(reload(tmp_path, changed), hf) > 1e-4, (field, value)


def test_parity_notices_the_factor_of_linear_scaling(tmp_path):
    hf = saved(tmp_path, rope_scaling={"rope_type": "linear", "factor": 3.0})
    config = hf_config.config_from_hf(
        hf_config.read_config(tmp_path / "config.json"), precision="exact"
    )
    changed = dataclasses.replace(config, rope_scaling=rope.RopeScaling(kind="linear", factor=2.0))
    assert hf_llama.logits_error(reload(tmp_path, changed), hf) > 1e-4


@pytest.mark.parametrize(
    "change",
    [
        {"num_layers": 2},
        {"vocab_size": 68},
        {"embed_dim": 36},
        {"hidden_dim": 60},
        {"num_heads": 8},
        {"head_dim": 6},
        {"num_kv_heads": 1},
        {"weight_tying": True},
        {"qkv_bias": True},
        {"o_bias": True},
        {"mlp_bias": True},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_wrong_size_does_not_fit_the_checkpoint(change, tmp_path):
    saved(tmp_path)
    raw = hf_config.read_config(tmp_path / "config.json")
    config = dataclasses.replace(hf_config.config_from_hf(raw), **change)
    with pytest.raises(ValueError, match=r"does not fit the model|tied"):
        reload(tmp_path, config)


@pytest.mark.parametrize("field", ["qkv_bias", "o_bias", "mlp_bias"])
def test_a_bias_of_the_checkpoint_is_never_dropped(field, tmp_path):
    saved(tmp_path, attention_bias=True, mlp_bias=True)
    raw = hf_config.read_config(tmp_path / "config.json")
    config = dataclasses.replace(hf_config.config_from_hf(raw), **{field: False})
    with pytest.raises(ValueError, match=r"no parameter for checkpoint tensor .*bias"):
        reload(tmp_path, config)


def test_half_precision_checkpoints_load_as_float32_and_as_bfloat16(tmp_path):
    hf_llama.make().to(torch.bfloat16).save_pretrained(tmp_path)
    hf = transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    model = load(tmp_path)
    assert model.embed_tokens.w.dtype == np.float32
    assert hf_llama.logits_error(model, hf) < 1e-5
    stored = load(tmp_path, dtype="bfloat16").layers.mlp.down_proj.w[...]
    assert stored.dtype.name == "bfloat16"
    np.testing.assert_array_equal(
        np.asarray(stored.astype(np.float32)), model.layers.mlp.down_proj.w[...]
    )
