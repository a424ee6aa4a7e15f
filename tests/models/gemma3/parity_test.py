"""Our Gemma 3 and that of transformers compute the same logits from the same files: text."""

import dataclasses

import numpy as np
import pytest

from tests.models import gemma_checks, hf_gemma
from tunix.models import weight_table, weights
from tunix.models.gemma3 import hf_layout, params_safetensors
from tunix.models.gemma3 import model as model_lib
from tunix.models.transformer import decoder
from tunix.ops import rope

CASES = {
    "Gemma 3": (hf_gemma.gemma3, {}),
    "untied, biases, capped logits": (
        hf_gemma.gemma3,
        {
            "tie_word_embeddings": False,
            "attention_bias": True,
            "final_logit_softcapping": 0.7,
            "num_key_value_heads": 1,
        },
    ),
    "fewer layers than the pattern": (
        hf_gemma.gemma3,
        {"layer_types": None, "num_hidden_layers": 2},
    ),
    "global layers only": (
        hf_gemma.gemma3,
        {"layer_types": ["full_attention"] * 2, "num_hidden_layers": 2},
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
    assert type(model) is model_lib.Gemma3
    assert found.error(model) < 1e-5


@pytest.mark.parametrize("scanned", [True, False], ids=["scanned", "unrolled"])
def test_cached_decoding_beyond_the_window_is_the_full_forward(scanned, checkpoints):
    found = checkpoints("Gemma 3")
    model = found.load(scan_layers=scanned)
    assert gemma_checks.decoding_error(model, found.ids, prompt=7) < 1e-5


MUTATIONS = {
    "rope_theta": 600.0,
    "local_rope_theta": 40.0,
    "rope_scaling": rope.RopeScaling(kind="linear", factor=5.0),
    "norm_eps": 1e-2,
    "activation": "silu",
    "scale_embeddings": False,
    "norm_scale_offset": 0.9,
    "query_pre_attn_scalar": 12.0,
    "attn_logit_softcap": 5.0,
    "final_logit_softcap": 30.0,
    "sliding_window_size": 6,
    "attention_types": ("local", "local", "global", "global"),
}


@pytest.mark.parametrize("field", MUTATIONS)
def test_parity_notices_every_field(field, checkpoints):
    """A field nobody reads would pass the tests above; it must not pass this one."""
    found = checkpoints("Gemma 3")
    changed = decoder.with_config(found.model, **{field: MUTATIONS[field]})
    assert found.error(changed) > 1e-4


def test_local_layers_are_not_scaled(checkpoints):
    found = checkpoints("Gemma 3")
    changed = decoder.with_config(found.model, local_rope_theta=None)
    assert found.error(changed) > 1e-4


def test_a_directory_loads_as_the_config_says(checkpoints):
    found = checkpoints("Gemma 3")
    config = dataclasses.replace(found.model.config, scan_layers=False)
    model = params_safetensors.create_model_from_safe_tensors(found.folder, config)
    assert found.error(model) < 1e-5


class Tensors:
    """A checkpoint in memory."""

    where = "tensors in memory"

    def __init__(self, tensors):
        self.tensors = tensors
        self.shapes = {name: array.shape for name, array in tensors.items()}

    def read(self, name):
        return self.tensors[name]


@pytest.mark.parametrize(
    ("model_prefix", "head", "other"),
    [
        pytest.param("model.language_model.", "lm_head.", "model.", id="in transformers"),
        pytest.param("language_model.model.", "language_model.lm_head.", "", id="on disk"),
    ],
)
def test_the_text_model_loads_from_files_with_an_image_tower(model_prefix, head, other):
    hf = hf_gemma.gemma3_with_images()
    ids = hf_gemma.tokens()
    names = {"model.language_model.": model_prefix, "lm_head.": head, "model.": other}

    def renamed(name):
        old = next(prefix for prefix in names if name.startswith(prefix))
        return names[old] + name.removeprefix(old)

    tensors = {renamed(name): tensor.numpy() for name, tensor in hf.state_dict().items()}
    config = text_config(hf)
    model = weights.load_model(model_lib.Gemma3, config, hf_layout.WEIGHTS, Tensors(tensors))
    assert hf_gemma.logits_error(model, hf_gemma.logits_of(hf, ids), ids) < 1e-5

    tensors["vision_tow.weight"] = np.zeros(3, np.float32)
    with pytest.raises(weight_table.WeightsError, match=r"no parameter for .* vision_tow\.weight"):
        weights.load_model(model_lib.Gemma3, config, hf_layout.WEIGHTS, Tensors(tensors))


def text_config(hf):
    sizes = hf.config.text_config
    return model_lib.ModelConfig.gemma3_270m(
        num_layers=sizes.num_hidden_layers,
        vocab_size=sizes.vocab_size,
        embed_dim=sizes.hidden_size,
        hidden_dim=sizes.intermediate_size,
        num_heads=sizes.num_attention_heads,
        num_kv_heads=sizes.num_key_value_heads,
        head_dim=sizes.head_dim,
        query_pre_attn_scalar=20.0,
        sliding_window_size=5,
        attention_types=("local", "local", "global"),
        rope_theta=500.0,
        rope_scaling=rope.RopeScaling(kind="linear", factor=4.0),
        local_rope_theta=30.0,
        precision="exact",
    )
