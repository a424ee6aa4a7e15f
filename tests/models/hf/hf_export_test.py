"""What is saved loads in transformers, complete and with the same logits."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers
from flax import nnx

from tests import tiny_llama
from tests.models import hf_llama, hf_tiny
from tunix.models import (
    automodel,
    families,
    lora,
    quantized,
    safetensors_writer,
    weight_table,
    weights,
)
from tunix.models.hf import hf_config, hf_export, model_card
from tunix.models.transformer import layout
from tunix.sft import peft_trainer
from tunix.utils import config as config_lib

CASES = hf_tiny.cases(families.FAMILIES)
IDS = hf_llama.tokens()


def saved(case, folder):
    hf = hf_tiny.make(case)
    hf.save_pretrained(folder)
    return hf


def load(folder, **options):
    return automodel.AutoModel.from_pretrained(str(folder), precision="exact", **options)[0]


def adapted(model, pattern="all-linear"):
    """Return ``model`` with adapters that change its function."""
    lora.apply_lora(
        model, lora.LoraConfig(rank=3, alpha=4.0, module_path=pattern), rngs=nnx.Rngs(0)
    )
    state = nnx.state(model, nnx.LoRAParam)
    keys = iter(jax.random.split(jax.random.key(1), len(jax.tree.leaves(state))))
    nnx.update(model, jax.tree.map(lambda x: 0.2 * jax.random.normal(next(keys), x.shape), state))
    return model


def transformers_model(folder):
    """Return what transformers loads, after checking that every tensor had its place."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(info.values()), info
    return model.eval()


def our_logits(model):
    return np.asarray(model(jnp.asarray(IDS, jnp.int32))[0])


def assert_same_function(model, folder):
    theirs = hf_llama.logits_of(transformers_model(folder), IDS)
    np.testing.assert_allclose(our_logits(model), theirs, atol=1e-4)


@pytest.fixture
def tiny(tmp_path):
    """Return the model and the directory of a tiny Llama with tokenizer and chat template."""
    folder = tmp_path / "original"
    folder.mkdir()
    tiny_llama.write_model(folder)
    return load(folder), folder


def test_there_is_a_case_for_every_family():
    assert {case.split()[0] for case in CASES} == set(families.FAMILIES)


@pytest.mark.parametrize("case", CASES)
def test_adapters_merged_while_saving_give_transformers_our_function(case, tmp_path):
    original = saved(case, tmp_path / "original")
    model = adapted(load(tmp_path / "original"))
    before = our_logits(model)
    assert np.abs(before - hf_llama.logits_of(original, IDS)).max() > 0.01
    hf_export.save_merged(model, tmp_path / "merged", source=tmp_path / "original")
    assert_same_function(model, tmp_path / "merged")
    np.testing.assert_array_equal(our_logits(model), before)


@pytest.mark.parametrize("case", CASES)
def test_saving_changes_no_tensor_and_no_field(case, tmp_path):
    saved(case, tmp_path / "original")
    model = load(tmp_path / "original")
    hf_export.save_pretrained(model, tmp_path / "saved", source=tmp_path / "original")
    transformers_model(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert again.config == model.config
    jax.tree.map(np.testing.assert_array_equal, nnx.state(again), nnx.state(model))
    ours, theirs = (
        transformers.AutoConfig.from_pretrained(tmp_path / name).to_dict() | {"_name_or_path": ""}
        for name in ("saved", "original")
    )
    assert {name: ours[name] for name in theirs} == theirs


def presets():
    for family in families.FAMILIES.values():
        members = vars(family.config_class).items()
        for name in (name for name, member in members if isinstance(member, classmethod)):
            yield pytest.param(family, getattr(family.config_class, name)(), id=name)


@pytest.mark.parametrize(("family", "config"), [*presets()])
def test_every_preset_is_read_back_from_the_config_that_is_written(family, config):
    raw = json.loads(json.dumps(family.write_config(config)))
    assert hf_config.family_of(raw) is family
    assert hf_config.config_from_hf(raw) == config
    assert raw["architectures"]


def test_three_steps_of_training_survive_the_way_to_transformers(tiny, tmp_path):
    model, folder = tiny
    lora.apply_lora(model, lora.LoraConfig(rank=2, alpha=8.0), rngs=nnx.Rngs(0))
    trainer = peft_trainer.PeftTrainer(
        model,
        optax.adam(0.05),
        peft_trainer.TrainingConfig(eval_every_n_steps=100, pbar_description=None),
    )
    batch = peft_trainer.TrainingInput(
        input_tokens=jnp.asarray(IDS, jnp.int32), input_mask=jnp.ones(IDS.shape, jnp.bool_)
    )
    before = our_logits(model)
    trainer.train([batch] * 3)
    assert np.abs(our_logits(trainer.model) - before).max() > 0.01
    hf_export.save_merged(trainer.model, tmp_path / "merged", source=folder)
    assert_same_function(trainer.model, tmp_path / "merged")


def test_an_unrolled_model_gives_the_same_files(tiny, tmp_path):
    model, folder = tiny
    adapted(model, "q_proj")
    hf_export.save_merged(model, tmp_path / "scanned", source=folder)
    hf_export.save_merged(layout.unroll_layers(model), tmp_path / "unrolled", source=folder)
    scanned, unrolled = load(tmp_path / "scanned"), load(tmp_path / "unrolled")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
        nnx.state(scanned),
        nnx.state(unrolled),
    )


def test_files_are_those_of_the_source_besides_weights_config_and_card(tiny, tmp_path):
    model, folder = tiny
    (folder / "LICENSE").write_text("terms")
    (folder / "optimizer.pt").write_bytes(b"")
    target = hf_export.save_pretrained(model, tmp_path / "out", source=folder)
    assert {path.name for path in target.iterdir()} == {
        "LICENSE",
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "LICENSE"):
        assert (target / name).read_bytes() == (folder / name).read_bytes()
    messages = [{"role": "user", "content": "Hi"}]
    ours = transformers.AutoTokenizer.from_pretrained(target)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    rendered = ours.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == theirs.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    assert ours(rendered).input_ids == theirs(rendered).input_ids


def test_what_only_the_source_knows_is_kept_in_the_config(tiny, tmp_path):
    model, folder = tiny
    path = folder / "config.json"
    raw = json.loads(path.read_text()) | {"bos_token_id": 0, "eos_token_id": [1, 2], "odd": 1}
    path.write_text(json.dumps(raw))
    hf_export.save_pretrained(model, tmp_path / "out", source=folder)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["bos_token_id"] == 0
    assert written["eos_token_id"] == [1, 2]
    assert written["max_position_embeddings"] == 512
    assert "odd" not in written


def test_large_models_are_split_over_files_with_an_index(tiny, tmp_path):
    model, folder = tiny
    hf_export.save_pretrained(model, tmp_path / "out", source=folder, max_shard_size="10KB")
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert_same_function(model, tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(files)
    leaves = jax.tree.leaves(nnx.state(model))
    assert index["metadata"] == {
        "total_parameters": sum(leaf.size for leaf in leaves),
        "total_size": sum(leaf.nbytes for leaf in leaves),
    }


def test_the_dtype_of_the_files_can_be_chosen(tiny, tmp_path):
    model, folder = tiny
    hf_export.save_pretrained(model, tmp_path / "out", source=folder, dtype=jnp.bfloat16)
    assert transformers_model(tmp_path / "out").dtype == torch.bfloat16
    again = load(tmp_path / "out", dtype="bfloat16")
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.bfloat16)),
        nnx.state(again),
        nnx.state(model),
    )
    with pytest.raises(hf_export.ExportError, match="dtype must be one of"):
        hf_export.save_pretrained(model, tmp_path / "other", source=folder, dtype="int8")


def test_a_bfloat16_model_is_saved_as_one(tiny, tmp_path):
    _, folder = tiny
    model = adapted(load(folder, dtype="bfloat16"), "q_proj")
    hf_export.save_merged(model, tmp_path / "out", source=folder)
    merged = lora.merge_lora(model)
    again = load(tmp_path / "out", dtype="bfloat16")
    assert transformers_model(tmp_path / "out").dtype == torch.bfloat16
    jax.tree.map(np.testing.assert_array_equal, nnx.state(again), nnx.state(merged))


@pytest.mark.parametrize(
    "settings", [{"use_dora": True}, {"dropout": 0.5}, {"use_rslora": True}], ids=str
)
def test_adapters_of_every_kind_are_merged(settings, tiny, tmp_path):
    model, folder = tiny
    config = lora.LoraConfig(rank=2, alpha=4.0, module_path="q_proj|down_proj", **settings)
    lora.apply_lora(model, config, rngs=nnx.Rngs(0))
    for name in ("q_proj", "down_proj"):
        (module,) = (m for path, m in lora.iter_projections(model) if path.endswith(name))
        module.lora_b[...] += 0.3
    model.eval()
    hf_export.save_merged(model, tmp_path / "out", source=folder)
    assert_same_function(model, tmp_path / "out")


def test_a_quantised_base_becomes_dense_when_it_is_merged(tiny, tmp_path):
    model, folder = tiny
    quantized.quantize_model(model, "int8")
    hf_export.save_pretrained(model, tmp_path / "base", source=folder)
    assert_same_function(model, tmp_path / "base")
    adapted(model, "q_proj|up_proj")
    before = our_logits(model)
    hf_export.save_merged(model, tmp_path / "merged", source=folder)
    assert_same_function(model, tmp_path / "merged")
    np.testing.assert_array_equal(our_logits(model), before)


def test_adapters_that_are_parked_are_not_left_out_silently(tiny, tmp_path):
    model, folder = tiny
    adapted(model, "q_proj")
    lora.park_adapters(model)
    with pytest.raises(hf_export.ExportError, match="use save_merged"):
        hf_export.save_pretrained(model, tmp_path / "out", source=folder)
    with pytest.raises(hf_export.ExportError, match="no LoRA adapter"):
        hf_export.save_merged(model, tmp_path / "out", source=folder)


def test_the_card_tells_where_the_model_comes_from(tiny, tmp_path):
    model, folder = tiny
    card = model_card.ModelCard(base_model="org/base", training="Trained for 3 steps.")
    hf_export.save_pretrained(model, tmp_path / "out", source=folder, card=card)
    text = (tmp_path / "out" / "README.md").read_text()
    for part in ("base_model: org/base", "# out", "Trained for 3 steps.", "`org/base`", "tunix 0."):
        assert part in text
    local = model_card.ModelCard(base_model="/some/path").render("x", num_parameters=1, dtype="f")
    assert "base_model:" not in local and "`/some/path`" in local


def test_adapters_are_never_left_out_silently(tiny, tmp_path):
    model, folder = tiny
    with pytest.raises(hf_export.ExportError, match="no LoRA adapters to merge"):
        hf_export.save_merged(model, tmp_path / "out", source=folder)
    adapted(model)
    with pytest.raises(hf_export.ExportError, match="use save_merged"):
        hf_export.save_pretrained(model, tmp_path / "out", source=folder)
    assert list(tmp_path.iterdir()) == [folder]


def test_nothing_that_is_there_is_overwritten(tiny, tmp_path):
    model, folder = tiny
    for target in (folder, folder / "config.json"):
        with pytest.raises(hf_export.ExportError, match="not an empty directory"):
            hf_export.save_pretrained(model, target, source=folder)
    (tmp_path / "empty").mkdir()
    hf_export.save_pretrained(model, tmp_path / "empty", source=folder)
    assert (tmp_path / "empty" / "model.safetensors").exists()


def test_a_failure_half_way_leaves_nothing(tiny, tmp_path, monkeypatch):
    model, folder = tiny
    read = weights.Export.__iter__

    def fails(self):
        yield next(read(self))
        raise OSError("No space left on device")

    monkeypatch.setattr(weights.Export, "__iter__", fails)
    with pytest.raises(OSError, match="No space left"):
        hf_export.save_pretrained(model, tmp_path / "out", source=folder)
    assert list(tmp_path.iterdir()) == [folder]


def test_a_full_disk_is_noticed_before_anything_is_written(tiny, tmp_path, monkeypatch):
    model, folder = tiny
    usage = hf_export.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(hf_export.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(hf_export.ExportError, match=r"takes 0\.\d+ MB and 0\.0 MB are free"):
        hf_export.save_pretrained(model, tmp_path / "out", source=folder)


def test_a_source_that_has_moved_is_an_error(tiny, tmp_path):
    model, _ = tiny
    with pytest.raises(hf_export.ExportError, match="original files are not there"):
        hf_export.save_pretrained(model, tmp_path / "out", source=tmp_path / "gone")


def test_what_a_config_file_cannot_say_is_refused(tiny, tmp_path):
    _, folder = tiny
    config = load(folder).config.__class__(
        num_layers=1, vocab_size=7, embed_dim=8, hidden_dim=8, num_heads=2, num_kv_heads=1,
        head_dim=4, rope_theta=1e4, norm_eps=1e-5, final_logit_softcap=30.0,
    )  # fmt: skip
    model = families.FAMILIES["llama3"].model_class(config, rngs=nnx.Rngs(0))
    with pytest.raises(config_lib.ConfigError, match=r"final_logit_softcap is 30\.0"):
        hf_export.save_pretrained(model, tmp_path / "out")


@pytest.mark.parametrize("size", ["0", "5XB", "-1", "", 0])
def test_an_unusable_shard_size_is_named(size, tiny, tmp_path):
    with pytest.raises(ValueError, match="max_shard_size must be a size such as"):
        hf_export.save_pretrained(tiny[0], tmp_path / "out", max_shard_size=size)


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, -jnp.inf])
def test_a_model_of_no_numbers_is_saved_only_if_asked_for(value, tmp_path):
    tiny_llama.write_model(tmp_path)
    model = load(tmp_path)
    model.norm.scale[...] = model.norm.scale[...].at[2].set(value)
    with pytest.raises(safetensors_writer.NonFiniteError, match=r"\(model\.norm\.weight\)"):
        hf_export.save_pretrained(model, tmp_path / "out")
    with pytest.raises(safetensors_writer.NonFiniteError, match=r"\(model\.norm\.weight\)"):
        hf_export.save_with_score(model, jnp.ones(16), tmp_path / "out", pad_token_id=0)
    assert not list(tmp_path.glob("*out*"))
    hf_export.save_pretrained(model, tmp_path / "out", allow_non_finite=True)
    with pytest.raises(weight_table.WeightsError, match=r"model\.norm\.weight holds NaN"):
        load(tmp_path / "out")


@pytest.mark.parametrize(
    ("pad", "message"),
    [
        (None, "pad_token_id is missing"),
        (1, "pad_token_id 1 ends texts"),
        (2, "pad_token_id 2 ends texts"),
        (258, "pad_token_id 258 is outside of the 258 embeddings"),
    ],
)
def test_a_padding_token_with_which_transformers_scores_another_token_is_refused(
    pad, message, tmp_path
):
    tiny_llama.write_model(tmp_path)
    # The one that the config says, and all that the generation config says.
    raw = json.loads((tmp_path / "config.json").read_text()) | {"eos_token_id": 1}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2]}))
    save = functools.partial(
        hf_export.save_with_score, load(tmp_path), jnp.ones(16), tmp_path / "out", source=tmp_path
    )
    with pytest.raises(config_lib.ConfigError, match=message):
        save(pad_token_id=pad)
    (tmp_path / "config.json").write_text(json.dumps(raw | {"pad_token_id": pad}))
    with pytest.raises(config_lib.ConfigError, match=message):
        save()
    assert not (tmp_path / "out").exists()
    assert json.loads((save(pad_token_id=3) / "config.json").read_text())["pad_token_id"] == 3
