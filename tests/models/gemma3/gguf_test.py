"""A GGUF file of Gemma 3 and the Hugging Face model it was made of compute the same logits."""

import os

import gguf
import numpy as np
import pytest

from tests.models import gguf_gemma_writer, gguf_writer, hf_gemma
from tunix.models import automodel, gguf_loader, safetensors_loader
from tunix.models.gemma3 import model as model_lib
from tunix.models.hf import hf_config

# What llama.cpp takes for granted: every sixth layer is global, local ones have base 10,000.
PUBLISHED = {
    "num_hidden_layers": 7,
    "layer_types": None,
    # Blocks of 32 divide the rows of every matrix.
    "intermediate_size": 64,
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
}


@pytest.mark.parametrize("quantization", ["F32", "Q5_0", "Q8_0"])
def test_logits_match_transformers_on_the_stored_weights(quantization, tmp_path):
    kind = gguf.GGMLQuantizationType[quantization]
    hf = hf_gemma.gemma3(**PUBLISHED)
    gguf_writer.round_weights(hf, kind)
    gguf_gemma_writer.round_norms(hf)
    path = tmp_path / "tiny.gguf"
    gguf_gemma_writer.write(path, hf, kind)
    model, _ = automodel.AutoModel.from_pretrained(str(path), precision="exact")
    assert type(model) is model_lib.Gemma3
    ids = hf_gemma.tokens()
    assert hf_gemma.logits_error(model, hf_gemma.logits_of(hf, ids), ids) < 1e-5


def test_weights_and_config_are_those_of_the_hugging_face_directory(tmp_path):
    hf = hf_gemma.gemma3(**PUBLISHED)
    gguf_gemma_writer.round_norms(hf)
    gguf_gemma_writer.write(tmp_path / "tiny.gguf", hf, gguf.GGMLQuantizationType.F32)
    hf.config.save_pretrained(tmp_path)
    checkpoint = gguf_loader.GGUFCheckpoint(tmp_path / "tiny.gguf")
    expected = {name: tensor.numpy() for name, tensor in hf.state_dict().items()}
    del expected["lm_head.weight"]
    assert checkpoint.shapes == {name: array.shape for name, array in expected.items()}
    for name, array in expected.items():
        np.testing.assert_array_equal(checkpoint.read(name), array)
    theirs = hf_config.config_from_hf(hf_config.read_config(tmp_path / "config.json"))
    assert hf_config.config_from_hf(checkpoint.config) == theirs


def test_scores_of_the_27b_model_are_scaled_by_the_width_per_head(tmp_path):
    hf = hf_gemma.gemma3(**PUBLISHED | {"num_hidden_layers": 62})
    gguf_gemma_writer.write(tmp_path / "tiny.gguf", hf, gguf.GGMLQuantizationType.F32)
    config = gguf_loader.GGUFCheckpoint(tmp_path / "tiny.gguf").config
    assert config["query_pre_attn_scalar"] == 32 // 4


REAL = "TUNIX_GEMMA3_270M_GGUF"


@pytest.mark.slow
@pytest.mark.skipif(
    REAL not in os.environ or "TUNIX_GEMMA3_270M" not in os.environ,
    reason=f"{REAL} and TUNIX_GEMMA3_270M are not both set: a GGUF file of gemma-3-270m and "
    "a float32 Hugging Face directory made of it",
)
def test_a_published_file_holds_what_an_independent_reader_finds_in_it():
    ours = gguf_loader.GGUFCheckpoint(os.environ[REAL])
    theirs = safetensors_loader.SafetensorsDirectory(os.environ["TUNIX_GEMMA3_270M"])
    assert ours.shapes == {name: tuple(shape) for name, shape in theirs.shapes.items()}
    for name in ours.shapes:
        np.testing.assert_array_equal(ours.read(name), theirs.read(name))
    assert hf_config.config_from_hf(ours.config) == model_lib.ModelConfig.gemma3_270m()
