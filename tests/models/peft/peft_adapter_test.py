"""Adapters go to the peft library and come from it, and compute the same logits there."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import safetensors.numpy
import torch
import transformers
from flax import nnx

from tests.models import hf_llama
from tunix.models import automodel, lora, safetensors_loader, safetensors_writer, weight_table
from tunix.models.peft import peft_adapter
from tunix.models.transformer import layout
from tunix.utils import config as utils_config

# Names and numbers of PEFT adapters that differ in what they compute.
PEFT_CASES = {
    "lora": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]},
    "rslora": {"r": 4, "lora_alpha": 8, "target_modules": ["v_proj"], "use_rslora": True},
    "dora": {"r": 3, "lora_alpha": 6, "target_modules": ["o_proj", "up_proj"], "use_dora": True},
    "all linear": {"r": 2, "lora_alpha": 3, "target_modules": "all-linear"},
    "regex": {"r": 2, "lora_alpha": 4, "target_modules": r".*self_attn\.(q|k)_proj"},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "k_proj", "gate_proj"],
        "rank_pattern": {"q_proj": 2, "mlp.gate_proj": 5},
        "alpha_pattern": {".*k_proj": 3},
    },
    "excluded": {
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["q_proj", "k_proj", "v_proj"],
        "exclude_modules": ["k_proj"],
    },
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Directory of a tiny Llama with biases nowhere and grouped-query heads."""
    folder = tmp_path_factory.mktemp("base")
    hf_llama.make().save_pretrained(folder)
    return folder


def ours(base, **options):
    return automodel.AutoModel.from_pretrained(str(base), precision="exact", **options)[0]


def theirs(base, folder):
    """The base with an adapter as peft loads it; what does not fit is an error."""
    hf = hf_llama.make()
    model = peft.PeftModel.from_pretrained(hf, folder)
    loaded = peft.utils.load_peft_weights(folder, device="cpu")
    result = peft.set_peft_model_state_dict(model, loaded)
    assert not result.unexpected_keys
    assert not [key for key in result.missing_keys if "lora_" in key]
    return model.eval()


def made_by_peft(folder, **settings):
    """Save a random adapter in ``folder`` and return the adapted model."""
    torch.manual_seed(1)
    model = peft.get_peft_model(
        hf_llama.make(), peft.LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.1, **settings)
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_magnitude" in name:
                parameter.mul_(1 + 0.2 * torch.rand_like(parameter))
            elif "lora_" in name:
                parameter.normal_(0.0, 0.3)
    model.save_pretrained(folder)
    return model.eval()


def randomised(model, seed=3):
    """Make every adapter parameter of the model random."""
    rng = np.random.default_rng(seed)
    for _, module in lora.iter_projections(model):
        for name, variable in module.adapter_arrays().items():
            noise = rng.normal(0, 0.1, variable.shape)
            old = variable[...]
            variable[...] = old * (1 + noise) if name == "lora_magnitude" else old + noise
    return model


@pytest.mark.parametrize(
    ("case", "scanned"),
    [*((case, True) for case in PEFT_CASES), ("lora", False), ("patterns", False)],
)
def test_what_peft_saved_computes_the_same_here(case, scanned, base, tmp_path):
    hf = made_by_peft(tmp_path, **PEFT_CASES[case])
    model = ours(base, scan_layers=scanned)
    peft_adapter.load_adapter(model, tmp_path)
    assert hf_llama.logits_error(model, hf) < 1e-5
    without, _ = model(jnp.asarray(hf_llama.tokens(), jnp.int32), adapters=False)
    with hf.disable_adapter():
        expected = hf_llama.logits_of(hf, hf_llama.tokens())
    np.testing.assert_allclose(without, expected, atol=1e-5)


OUR_CASES = {
    "lora": {"module_path": ".*q_einsum|.*kv_einsum"},
    "rslora": {"use_rslora": True},
    "dora": {"module_path": "o_proj|up_proj", "use_dora": True},
    "patterns": {"rank_pattern": {"q_proj": 2, "mlp.up_proj": 5}, "alpha_pattern": {"v_proj": 2.5}},
}


@pytest.mark.parametrize(
    ("case", "scanned"), [*((case, True) for case in OUR_CASES), ("dora", False)]
)
def test_what_we_saved_computes_the_same_in_peft_and_here(case, scanned, base, tmp_path):
    model = ours(base, scan_layers=scanned)
    config = lora.LoraConfig(rank=3, alpha=6.0, dropout=0.25, **OUR_CASES[case])
    randomised(lora.apply_lora(model, config, rngs=nnx.Rngs(0)))
    peft_adapter.save_adapter(model, tmp_path / "a", base_model="tiny/llama")
    assert hf_llama.logits_error(model, theirs(base, tmp_path / "a")) < 1e-5
    again = ours(base, scan_layers=not scanned)
    peft_adapter.load_adapter(again, tmp_path / "a", name="again", base_model="tiny/llama")
    tokens = jnp.asarray(hf_llama.tokens(), jnp.int32)
    np.testing.assert_allclose(again(tokens)[0], model(tokens)[0], atol=2e-6)
    written = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == "tiny/llama"
    assert written["lora_dropout"] == 0.25
    module = next(m for _, m in lora.iter_projections(again) if m.adapter is not None)
    assert (module.adapter.name, module.adapter.dropout) == ("again", 0.25)


def test_a_layer_of_its_own_size_needs_layers_that_are_not_stacked(base, tmp_path):
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    hf = made_by_peft(tmp_path, **settings, rank_pattern={r"layers\.1\.self_attn\.q_proj": 2})
    with pytest.raises(weight_table.WeightsError, match="scan_layers=False"):
        peft_adapter.load_adapter(ours(base), tmp_path)
    model = layout.unroll_layers(ours(base))
    peft_adapter.load_adapter(model, tmp_path)
    assert hf_llama.logits_error(model, hf) < 1e-5
    peft_adapter.save_adapter(model, tmp_path / "again", base_model="x")
    assert hf_llama.logits_error(model, theirs(base, tmp_path / "again")) < 1e-5


def test_adapters_of_some_layers_keep_to_them(base, tmp_path):
    settings = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    hf = made_by_peft(tmp_path, **settings, layers_to_transform=[0, 2])
    model = ours(base, scan_layers=False)
    peft_adapter.load_adapter(model, tmp_path)
    assert hf_llama.logits_error(model, hf) < 1e-5
    peft_adapter.save_adapter(model, tmp_path / "again", base_model="x")
    config = json.loads((tmp_path / "again" / "adapter_config.json").read_text())
    assert config["target_modules"] == [f"model.layers.{i}.self_attn.q_proj" for i in (0, 2)]
    assert hf_llama.logits_error(model, theirs(base, tmp_path / "again")) < 1e-5


def test_fields_that_we_cannot_compute_are_named(base, tmp_path):
    settings = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    made_by_peft(tmp_path, **settings, modules_to_save=["embed_tokens"])
    path = tmp_path / "adapter_config.json"
    raw = json.loads(path.read_text()) | {"bias": "all", "init_lora_weights": "pissa"}
    path.write_text(json.dumps(raw | {"a_field_of_tomorrow": 3}))
    with pytest.raises(utils_config.ConfigError) as error:
        peft_adapter.load_adapter(ours(base), tmp_path)
    named = {problem.partition(" ")[0] for problem in error.value.problems}
    assert named == {"bias", "init_lora_weights", "modules_to_save", "a_field_of_tomorrow"}


def test_an_adapter_for_another_base_is_refused_with_every_misfit(base, tmp_path):
    made_by_peft(tmp_path, r=2, lora_alpha=4, target_modules=["q_proj", "up_proj"])
    path = tmp_path / "adapter_model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    prefix = "base_model.model.model.layers"
    tensors[f"{prefix}.0.self_attn.q_proj.lora_A.weight"] = np.zeros((2, 40), np.float32)
    for part in "AB":
        tensors[f"{prefix}.7.mlp.up_proj.lora_{part}.weight"] = np.zeros((2, 32), np.float32)
    del tensors[f"{prefix}.1.mlp.up_proj.lora_B.weight"]
    for part in "AB":
        del tensors[f"{prefix}.2.mlp.up_proj.lora_{part}.weight"]
    safetensors.numpy.save_file(tensors, path)
    model = ours(base)
    with pytest.raises(weight_table.WeightsError) as error:
        peft_adapter.load_adapter(model, tmp_path)
    message = str(error.value)
    for text in (
        "layers.0.self_attn.q_proj.lora_A.weight has shape (2, 40), the model needs (2, 32)",
        "the model has no module model.layers.7.mlp.up_proj",
        "model.layers.1.mlp.up_proj has no lora_b",
        "target_modules names model.layers.2.mlp.up_proj, and there are no tensors for it",
    ):
        assert text in message
    assert not lora.is_lora_enabled(model)


def test_a_known_base_is_compared_by_name(base, tmp_path):
    model = randomised(
        lora.apply_lora(ours(base), lora.LoraConfig(rank=1, alpha=1.0), rngs=nnx.Rngs(0))
    )
    peft_adapter.save_adapter(model, tmp_path / "a", base_model="meta-llama/Llama-3.2-1B")
    with pytest.raises(
        weight_table.WeightsError, match=re.escape("'meta-llama/Llama-3.2-1B', and")
    ):
        peft_adapter.load_adapter(ours(base), tmp_path / "a", base_model="other/model")


def test_a_truncated_file_is_named(base, tmp_path):
    made_by_peft(tmp_path, r=2, lora_alpha=4, target_modules=["q_proj"])
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(safetensors_loader.CheckpointFileError, match=r"adapter_model\.safetensors"):
        peft_adapter.load_adapter(ours(base), tmp_path)


def test_an_adapter_is_not_overwritten_and_there_must_be_one(base, tmp_path):
    model = ours(base)
    with pytest.raises(lora.AdapterError, match="no adapter is in use"):
        peft_adapter.save_adapter(model, tmp_path, base_model="x")
    lora.apply_lora(model, lora.LoraConfig(rank=1, alpha=1.0), rngs=nnx.Rngs(0))
    peft_adapter.save_adapter(model, tmp_path, base_model="x")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    with pytest.raises(FileExistsError, match="already holds"):
        peft_adapter.save_adapter(model, tmp_path, base_model="x")


def test_dropout_that_came_with_an_adapter_drops_in_training_only(base, tmp_path):
    made_by_peft(tmp_path, r=2, lora_alpha=4, target_modules=["q_proj"])
    model = ours(base)
    peft_adapter.load_adapter(model, tmp_path)
    tokens = jnp.asarray(hf_llama.tokens(), jnp.int32)
    still = model.hidden(tokens)[0]
    dropped = model.hidden(tokens, dropout_key=jax.random.key(0))[0]
    assert np.abs(dropped - still).max() > 1e-3


SMALL = {
    "vocab_size": 67,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
FAMILIES = {
    "qwen2": lambda: transformers.Qwen2Config(**SMALL),
    "qwen3": lambda: transformers.Qwen3Config(**SMALL),
    "gemma2": lambda: transformers.Gemma2Config(**SMALL, sliding_window=8),
    "gemma3": lambda: transformers.Gemma3TextConfig(**SMALL, sliding_window=8),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_of_every_family_go_to_peft(family, tmp_path):
    torch.manual_seed(0)
    config = FAMILIES[family]()
    config._attn_implementation = "eager"
    hf = transformers.AutoModelForCausalLM.from_config(config).eval()
    hf.save_pretrained(tmp_path / "base")
    model = ours(tmp_path / "base")
    config = lora.LoraConfig(rank=2, alpha=4.0, use_dora=True)
    randomised(lora.apply_lora(model, config, rngs=nnx.Rngs(0)))
    peft_adapter.save_adapter(model, tmp_path / "a", base_model="x")
    adapted = peft.PeftModel.from_pretrained(hf, tmp_path / "a").eval()
    assert hf_llama.logits_error(model, adapted) < 1e-5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("r", [2]),
        ("r", 2.5),
        ("r", True),
        ("lora_alpha", "4"),
        ("lora_alpha", float("nan")),
        ("lora_dropout", 1.5),
        ("use_dora", "yes"),
        ("target_modules", 5),
        ("target_modules", [["q_proj"]]),
        ("target_modules", "(q_proj"),
        ("exclude_modules", {"a": 1}),
        ("layers_to_transform", ["0"]),
        ("rank_pattern", ["q_proj"]),
        ("rank_pattern", {"q_proj": "2"}),
        ("alpha_pattern", {"(": 2}),
        ("base_model_name_or_path", ["a"]),
    ],
)
def test_a_field_of_another_type_is_named(name, value, base, tmp_path):
    made_by_peft(tmp_path, r=2, lora_alpha=4, target_modules=["q_proj"])
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with pytest.raises(utils_config.ConfigError) as error:
        peft_adapter.load_adapter(ours(base), tmp_path)
    (problem,) = error.value.problems
    assert problem.startswith(f"{name} must be ")
    assert str(path) in str(error.value)


def test_an_adapter_of_no_numbers_is_refused_in_both_directions(base, tmp_path):
    model = lora.apply_lora(ours(base), lora.LoraConfig(rank=1, alpha=1.0), rngs=nnx.Rngs(0))
    adapter = model.layers.self_attn.q_proj.lora_b
    adapter[...] = adapter[...].at[1, 0, 0].set(jnp.inf)
    with pytest.raises(safetensors_writer.NonFiniteError, match=r"layers\.1\.self_attn\.q_proj"):
        peft_adapter.save_adapter(model, tmp_path / "a", base_model="x")
    assert list((tmp_path / "a").iterdir()) == []
    peft_adapter.save_adapter(model, tmp_path / "a", base_model="x", allow_non_finite=True)
    with pytest.raises(weight_table.WeightsError, match=r"1\.self_attn\.q_proj\.lora_B.* NaN"):
        peft_adapter.load_adapter(ours(base), tmp_path / "a")
