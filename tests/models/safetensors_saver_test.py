"""The saver of google-tunix writes the merged model, if it is told the truth about it."""

import importlib
import inspect

import jax
import numpy as np
import pytest
from flax import nnx

from tests import tiny_llama
from tunix.models import automodel, families, lora, safetensors_saver
from tunix.models.hf import hf_export


@pytest.fixture
def tiny(tmp_path):
    folder = tmp_path / "original"
    folder.mkdir()
    tiny_llama.write_model(folder)
    model, _ = automodel.AutoModel.from_pretrained(str(folder))
    lora.apply_lora(
        model, lora.LoraConfig(rank=2, alpha=6.0, module_path="q_proj"), rngs=nnx.Rngs(0)
    )
    model.layers.self_attn.q_proj.lora_b[...] += 0.1
    return model, folder


def test_every_family_has_it():
    for name in families.FAMILIES:
        params = importlib.import_module(f"tunix.models.{name}.params")
        function = params.save_lora_merged_model_as_safetensors
        assert list(inspect.signature(function).parameters) == [
            "local_model_path",
            "output_dir",
            "lora_model",
            "rank",
            "alpha",
        ]


def test_it_writes_the_merged_model(tiny, tmp_path):
    model, folder = tiny
    safetensors_saver.save_lora_merged_model_as_safetensors(
        str(folder), str(tmp_path / "out"), model, rank=2, alpha=6.0
    )
    again, _ = automodel.AutoModel.from_pretrained(str(tmp_path / "out"))
    expected = nnx.state(lora.merge_lora(model))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), nnx.state(again), expected
    )
    assert (tmp_path / "out" / "tokenizer.json").exists()


@pytest.mark.parametrize(("rank", "alpha"), [(3, 6.0), (2, 2.0)])
def test_another_rank_or_alpha_is_an_error(rank, alpha, tiny, tmp_path):
    model, folder = tiny
    with pytest.raises(hf_export.ExportError, match=r"q_proj has rank 2 and alpha 6"):
        safetensors_saver.save_lora_merged_model_as_safetensors(
            folder, tmp_path / "out", model, rank, alpha
        )
    assert not (tmp_path / "out").exists()
