"""AutoModel loads whatever it is given, or says in one message why not."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx

from tests.models import gguf_writer, hf_llama
from tunix.models import automodel, families, naming, sources, weight_table
from tunix.models.llama3 import model as llama3
from tunix.models.llama3 import params
from tunix.models.transformer import sharding
from tunix.utils import config as config_lib

AutoModel = automodel.AutoModel


@pytest.fixture(scope="module")
def hf():
    return hf_llama.make()


@pytest.fixture
def folder(hf, tmp_path):
    hf.save_pretrained(tmp_path)
    return tmp_path


def test_a_directory_gives_the_model_of_its_family_and_the_path(hf, folder):
    model, path = AutoModel.from_pretrained(str(folder), precision="exact")
    assert type(model) is llama3.Llama3
    assert type(model.config) is llama3.ModelConfig
    assert path == str(folder)
    assert hf_llama.logits_error(model, hf) < 1e-5


def test_a_package_gives_its_model(hf, tmp_path, monkeypatch):
    (tmp_path / "tiny_model").mkdir()
    (tmp_path / "tiny_model" / "__init__.py").write_text("")
    gguf_writer.write(tmp_path / "tiny_model" / "tiny.gguf", hf)
    monkeypatch.syspath_prepend(tmp_path)
    model, path = AutoModel.from_pretrained("package:tiny_model", precision="exact")
    assert path == str(tmp_path / "tiny_model" / "tiny.gguf")
    assert hf_llama.logits_error(model, hf) < 1e-5


def test_options_say_how_the_model_runs(folder):
    model, _ = AutoModel.from_pretrained(
        str(folder), dtype=np.float32, precision="exact", remat="none", scan_layers=False
    )
    config = model.config
    assert (config.precision, config.remat, config.scan_layers) == ("exact", "none", False)
    assert config.param_dtype == "float32"
    defaults = AutoModel.from_pretrained(str(folder), dtype="bfloat16")[0].config
    assert (defaults.precision, defaults.remat, defaults.scan_layers) == (
        "auto",
        "nothing_saveable",
        True,
    )
    assert defaults.param_dtype == "bfloat16"


def test_an_unusable_dtype_is_a_config_error(folder):
    with pytest.raises(config_lib.ConfigError, match="param_dtype must be one of"):
        AutoModel.from_pretrained(str(folder), dtype="int8")


def test_a_mesh_gets_the_model(folder):
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"))
    model, _ = AutoModel.from_pretrained(str(folder), mesh)
    assert model.embed_tokens.w.get_raw_value().sharding.mesh == sharding.with_propagated_axes(mesh)


def test_create_model_from_safe_tensors_takes_a_config_of_ones_own(hf, folder):
    config = llama3.ModelConfig(
        num_layers=3,
        vocab_size=67,
        embed_dim=32,
        hidden_dim=56,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        rope_theta=1e4,
        norm_eps=1e-5,
        precision="exact",
    )
    model = params.create_model_from_safe_tensors(str(folder), config)
    assert hf_llama.logits_error(model, hf) < 1e-5
    stored = params.create_model_from_safe_tensors(str(folder), config, dtype="bfloat16")
    assert stored.embed_tokens.w.dtype.name == "bfloat16"


def test_the_name_of_a_model_stands_for_a_missing_config_file(tmp_path, monkeypatch):
    tiny = llama3.ModelConfig.smollm2_135m(
        num_layers=2, vocab_size=67, embed_dim=32, hidden_dim=56, num_heads=4, head_dim=8,
        num_kv_heads=2,
    )  # fmt: skip
    monkeypatch.setattr(llama3.ModelConfig, "smollm2_135m", classmethod(lambda cls: tiny))
    hf = hf_llama.make(num_hidden_layers=2, tie_word_embeddings=True, rope_theta=1e5)
    hf.save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    model, path = AutoModel.from_pretrained(
        "HuggingFaceTB/SmolLM2-135M", model_path=str(tmp_path), precision="exact"
    )
    assert path == str(tmp_path)
    assert model.config == dataclasses.replace(tiny, precision="exact")
    assert hf_llama.logits_error(model, hf) < 1e-5


def test_without_config_file_and_known_name_the_error_says_what_to_add(folder):
    (folder / "config.json").unlink()
    with pytest.raises(sources.SourceError, match=r"has no config\.json.*model_path"):
        AutoModel.from_pretrained(str(folder))


def test_files_of_another_family_than_the_config_says_are_listed(folder):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "qwen2"}))
    with pytest.raises(weight_table.WeightsError) as error:
        AutoModel.from_pretrained(str(folder))
    for part in "qkv":
        expected = f"no checkpoint tensor model.layers.{{i}}.self_attn.{part}_proj.bias"
        assert any(problem.startswith(expected) for problem in error.value.problems)


def test_a_missing_directory_is_one_clear_error():
    with pytest.raises(sources.SourceError, match="no such file or directory"):
        AutoModel.from_pretrained("/no/such/model")


def test_a_model_name_calls_its_preset():
    assert automodel.call_model_config("llama3.1-8b") == llama3.ModelConfig.llama3p1_8b()
    assert automodel.call_model_config("SmolLM2-1.7B") == llama3.ModelConfig.smollm2_1p7b()


def test_a_name_without_preset_suggests_the_nearest():
    with pytest.raises(config_lib.ConfigError, match="did you mean 'llama3p1_8b'"):
        automodel.call_model_config("llama3.1-9b")
    with pytest.raises(naming.NamingError):
        automodel.call_model_config("unheard-of-8b")


def test_a_name_whose_architecture_cannot_be_built_lists_those_that_can(monkeypatch):
    monkeypatch.setattr(families, "FAMILIES", {"llama3": families.FAMILIES["llama3"]})
    with pytest.raises(config_lib.ConfigError, match=r"'qwen3', which is not supported.*llama3"):
        automodel.call_model_config("qwen3-8b")


def test_every_preset_is_reached_by_its_name():
    members = vars(llama3.ModelConfig).items()
    for preset in (name for name, member in members if isinstance(member, classmethod)):
        name = naming.get_model_name_from_model_id(preset)
        assert automodel.call_model_config(name) == getattr(llama3.ModelConfig, preset)()


def test_a_name_leads_to_the_modules_of_its_family():
    kinds = automodel.ModelModule
    assert automodel.get_model_module("llama3.1-8b", kinds.MODEL) is llama3
    assert automodel.get_model_module("smollm2-135m", kinds.PARAMS) is params
    with pytest.raises(config_lib.ConfigError, match=r"no module 'params_safetensors'.*'params'"):
        automodel.get_model_module("llama3.1-8b", kinds.PARAMS_SAFETENSORS)


def test_a_name_and_a_config_are_enough_to_load_safetensors(hf, folder):
    config = AutoModel.from_pretrained(str(folder), precision="exact")[0].config
    (folder / "config.json").unlink()
    model = automodel.create_model_from_safe_tensors("llama3.1-8b", str(folder), config)
    assert hf_llama.logits_error(model, hf) < 1e-5
    stored = automodel.create_model_from_safe_tensors(
        "llama3.1-8b", str(folder), config, dtype="bfloat16"
    )
    assert stored.config.param_dtype == "bfloat16"


def test_an_abstract_model_has_shapes_and_no_arrays(folder):
    abstract, path = automodel.abstract_model(str(folder), dtype="bfloat16")
    model, _ = AutoModel.from_pretrained(str(folder), dtype="bfloat16")
    assert path == str(folder)
    assert abstract.config == model.config
    leaves, expected = jax.tree.leaves(nnx.state(abstract)), jax.tree.leaves(nnx.state(model))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    assert [(x.shape, x.dtype) for x in leaves] == [(x.shape, x.dtype) for x in expected]


def test_what_is_local_is_not_downloaded(folder):
    assert automodel.download_model(str(folder)) == str(folder)


def test_a_loaded_model_is_complete(folder):
    model, _ = AutoModel.from_pretrained(str(folder))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(nnx.state(model)))
