"""Our Gemma 1 and 2 and those of transformers compute the same logits from the same files."""

import dataclasses

import jax.numpy as jnp
import pytest

from tests.models import gemma_checks, hf_gemma
from tunix.models import automodel
from tunix.models.gemma import model as model_lib
from tunix.models.gemma import params_safetensors
from tunix.models.transformer import decoder

CASES = {
    "Gemma 1": (hf_gemma.gemma, {}),
    "Gemma 1: one key head for all, untied, biases": (
        hf_gemma.gemma,
        {"num_key_value_heads": 1, "tie_word_embeddings": False, "attention_bias": True},
    ),
    "Gemma 2": (hf_gemma.gemma2, {}),
    "Gemma 2: no caps, layers of another order": (
        hf_gemma.gemma2,
        {
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "layer_types": ["full_attention", "full_attention", "sliding_attention"],
        },
    ),
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Return a function from the name of a case to its files and the logits of transformers."""
    return gemma_checks.Checkpoints(CASES, tmp_path_factory)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("scanned", [True, False], ids=["scanned", "unrolled"])
def test_logits_match_transformers(case, scanned, checkpoints):
    found = checkpoints(case)
    model = found.load(scan_layers=scanned)
    assert type(model) is model_lib.Gemma
    assert found.error(model) < 1e-5


@pytest.mark.parametrize("scanned", [True, False], ids=["scanned", "unrolled"])
def test_cached_decoding_beyond_the_window_is_the_full_forward(scanned, checkpoints):
    found = checkpoints("Gemma 2")
    model = found.load(scan_layers=scanned)
    assert gemma_checks.decoding_error(model, found.ids, prompt=7) < 1e-5


MUTATIONS = {
    "Gemma 1": {
        "rope_theta": 2e4,
        "norm_eps": 1e-2,
        "activation": "gelu",
        "scale_embeddings": False,
        "norm_scale_offset": 0.0,
        "query_pre_attn_scalar": 20.0,
        "final_logit_softcap": 30.0,
    },
    "Gemma 2": {
        "rope_theta": 2e4,
        "norm_eps": 1e-2,
        "activation": "silu",
        "scale_embeddings": False,
        "norm_scale_offset": 0.9,
        "query_pre_attn_scalar": None,
        "attn_logit_softcap": 0.6,
        "final_logit_softcap": 0.8,
        "sliding_window_size": 6,
        "attention_types": ("global", "local"),
        "local_rope_theta": 2e4,
    },
}


@pytest.mark.parametrize(
    ("case", "field"), [(case, field) for case, fields in MUTATIONS.items() for field in fields]
)
def test_parity_notices_every_field(case, field, checkpoints):
    """A field nobody reads would pass the tests above; it must not pass this one."""
    found = checkpoints(case)
    changed = decoder.with_config(found.model, **{field: MUTATIONS[case][field]})
    assert found.error(changed) > 1e-4


def test_a_directory_loads_as_the_config_says(checkpoints):
    found = checkpoints("Gemma 2")
    config = dataclasses.replace(found.model.config, scan_layers=False)
    model = params_safetensors.create_model_from_safe_tensors(found.folder, config)
    assert found.error(model) < 1e-5
    stored = params_safetensors.create_model_from_safe_tensors(
        found.folder, config, dtype=jnp.bfloat16
    )
    assert stored.embed_tokens.w.dtype == jnp.bfloat16


def test_the_files_of_one_generation_do_not_fit_the_other(checkpoints):
    config = checkpoints("Gemma 1").model.config
    with pytest.raises(ValueError, match=r"no parameter for .*pre_feedforward_layernorm"):
        params_safetensors.create_model_from_safe_tensors(checkpoints("Gemma 2").folder, config)


def test_a_directory_gives_the_model_of_its_family(checkpoints):
    model, path = automodel.AutoModel.from_pretrained(str(checkpoints("Gemma 1").folder))
    assert type(model) is model_lib.Gemma
    assert type(model.config) is model_lib.ModelConfig
    assert path == str(checkpoints("Gemma 1").folder)
