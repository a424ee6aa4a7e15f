"""Our Gemma 3 and that of transformers compute the same logits from the same text and images."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from tests.models import hf_gemma3_images as hf_images
from tunix.models import automodel, safetensors_loader, weight_table, weights
from tunix.models.gemma3 import hf_layout, params_safetensors
from tunix.models.gemma3 import model as model_lib
from tunix.models.hf import hf_config, hf_export
from tunix.models.transformer import decoder, layout


class Checkpoint:
    """A tiny model of transformers, its files and its logits."""

    def __init__(self, folder, **changes):
        self.hf = hf_images.make(**changes)
        self.hf.save_pretrained(folder)
        self.folder = folder
        self.tokens = hf_images.rows(self.hf.config.image_token_id)
        self.images = hf_images.pixels()
        self.logits = hf_images.logits_of(self.hf, self.tokens, self.images)
        self.model = self.load()

    def load(self, **options):
        options = {"precision": "exact"} | options
        return automodel.AutoModel.from_pretrained(str(self.folder), **options)[0]

    def error(self, model, **changes):
        given = {"tokens": self.tokens, "images": self.images} | changes
        logits, _ = model(jnp.asarray(given["tokens"]), images=jnp.asarray(given["images"]))
        return float(np.abs(np.asarray(logits) - self.logits).max())


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return Checkpoint(tmp_path_factory.mktemp("images"))


def test_logits_of_rows_with_two_images_one_and_none_match(found):
    assert type(found.model) is model_lib.Gemma3
    assert found.error(found.model) < 1e-5
    assert found.error(layout.unroll_layers(found.model)) < 1e-5


def test_tower_and_projector_match_by_themselves(found):
    with torch.no_grad():
        pixels = torch.tensor(found.images[0].transpose(0, 3, 1, 2))
        tower = found.hf.model.vision_tower(pixel_values=pixels).last_hidden_state
        vectors = found.hf.model.multi_modal_projector(tower).numpy()
    ours = found.model.vision_tower(jnp.asarray(found.images[0]))
    np.testing.assert_allclose(ours, tower.numpy(), atol=1e-5)
    encoded = found.model.encode_images(jnp.asarray(found.images[:1]))
    np.testing.assert_allclose(encoded[0], vectors, atol=1e-5)


def test_text_alone_matches_on_the_same_model(found):
    tokens = found.tokens[2:]
    with torch.no_grad():
        theirs = found.hf(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(found.model(jnp.asarray(tokens))[0], theirs, atol=1e-5)
    np.testing.assert_allclose(theirs, found.logits[2:], atol=1e-5)


def test_the_case_notices_images_their_order_and_who_sees_whom(found):
    """What would pass the tests above unnoticed if the case were too small."""
    assert found.error(found.model, images=found.images[:, ::-1]) > 1e-2
    model, tokens = found.model, jnp.asarray(found.tokens)
    is_image = tokens == hf_images.SOFT
    vectors = model.encode_images(jnp.asarray(found.images)).reshape(3, -1, model.embed_dim)
    embeddings = model.embed(tokens)
    for row, count in enumerate(hf_images.COUNTS):
        slots = np.flatnonzero(is_image[row])
        embeddings = embeddings.at[row, slots].set(vectors[row, : count * 4])
    causal, _ = model(tokens, input_embeddings=embeddings)
    assert np.abs(np.asarray(causal) - found.logits)[:2].max() > 1e-2


def test_more_patches_than_a_tile_of_attention_and_another_pooling(tmp_path):
    found = Checkpoint(
        tmp_path,
        vision={"image_size": 16, "patch_size": 1, "num_hidden_layers": 1},
        image_token_index=79,
    )
    assert found.model.config.vision_config.grid_side == 16
    assert found.error(found.model) < 1e-5


@pytest.mark.parametrize(
    "image_token_index", [pytest.param(79, id="in the vocabulary"), pytest.param(85, id="beyond")]
)
def test_the_placeholder_may_lie_beyond_the_vocabulary(image_token_index, tmp_path):
    found = Checkpoint(tmp_path, image_token_index=image_token_index)
    assert found.error(found.model) < 1e-5


MUTATIONS = {"num_heads": 2, "norm_eps": 1e-2}


@pytest.mark.parametrize("field", MUTATIONS)
def test_parity_notices_every_field_of_the_tower(field, found):
    """Other fields change shapes or tokens, or do not touch the model (pixels are given)."""
    tower = dataclasses.replace(found.model.config.vision_config, **{field: MUTATIONS[field]})
    changed = decoder.with_config(found.model, vision_config=tower)
    assert found.error(changed) > 1e-4


@pytest.mark.parametrize(
    "change",
    [
        {"width": 48},
        {"depth": 3},
        {"mlp_dim": 44},
        {"patch_size": (8, 8)},
        {"image_height": 32, "image_width": 32},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_tower_of_a_wrong_size_does_not_fit_the_checkpoint(change, found):
    config = found.model.config
    tower = dataclasses.replace(config.vision_config, **change)
    with pytest.raises(weight_table.WeightsError, match="vision_tower"):
        params_safetensors.create_model_from_safe_tensors(
            found.folder, dataclasses.replace(config, vision_config=tower)
        )


class Tensors:
    """A checkpoint in memory."""

    where = "tensors in memory"

    def __init__(self, tensors):
        self.tensors = tensors
        self.shapes = {name: array.shape for name, array in tensors.items()}

    def read(self, name):
        return self.tensors[name]


NAMES = {
    "on the Hub": ("language_model.model.", "vision_tower.vision_model.", ""),
    "written by transformers 5": ("language_model.model.", "vision_tower.", ""),
    "in memory of transformers 5": ("model.language_model.", "model.vision_tower.", "model."),
    "in memory of transformers 4": (
        "model.language_model.",
        "model.vision_tower.vision_model.",
        "model.",
    ),
}


def tensors_named(hf, text, tower, projector):
    """Return the tensors of a model of transformers, under names of other versions."""
    renamed = {
        "model.language_model.": text,
        "model.vision_tower.": tower,
        "model.multi_modal_projector.": f"{projector}multi_modal_projector.",
    }
    return {
        prefix + name.removeprefix(old): tensor.numpy()
        for name, tensor in hf.state_dict().items()
        for old, prefix in renamed.items()
        if name.startswith(old)
    }


@pytest.mark.parametrize("version", NAMES)
def test_files_of_every_version_load(version, found):
    source = Tensors(tensors_named(found.hf, *NAMES[version]))
    model = weights.load_model(model_lib.Gemma3, found.model.config, hf_layout.WEIGHTS, source)
    for path, loaded in weights.parameters_of(model).items():
        expected = weights.parameters_of(found.model)[path]
        np.testing.assert_array_equal(loaded.read(()), expected.read(()), err_msg=path)


def test_every_tensor_of_the_tower_must_be_there_and_no_other(found):
    tensors = tensors_named(found.hf, *NAMES["on the Hub"])
    tower = "vision_tower.vision_model."
    del tensors[f"{tower}encoder.layers.2.mlp.fc1.bias"]
    tensors[f"{tower}encoder.layers.2.mlp.fc3.bias"] = np.zeros(3, np.float32)
    with pytest.raises(weight_table.WeightsError) as error:
        weights.load_model(
            model_lib.Gemma3, found.model.config, hf_layout.WEIGHTS, Tensors(tensors)
        )
    assert len(error.value.problems) == 2
    assert f"no checkpoint tensor {tower}encoder.layers.2.mlp.fc1.bias" in str(error.value)
    assert f"no parameter for checkpoint tensor {tower}encoder" in str(error.value)


def test_the_text_model_alone_loads_from_the_same_files(found):
    config = dataclasses.replace(found.model.config, vision_config=None)
    model = params_safetensors.create_model_from_safe_tensors(found.folder, config)
    logits, _ = model(jnp.asarray(found.tokens[2:]))
    np.testing.assert_allclose(logits, found.logits[2:], atol=1e-5)


def test_transformers_loads_what_we_save_and_computes_the_same(found, tmp_path):
    folder = hf_export.save_pretrained(found.model, tmp_path / "saved", source=found.folder)
    names = set(safetensors_loader.SafetensorsDirectory(folder).shapes)
    assert names == set(tensors_named(found.hf, *NAMES["on the Hub"]))
    theirs, info = transformers.AutoModelForImageTextToText.from_pretrained(
        folder, output_loading_info=True, attn_implementation="eager"
    )
    assert type(theirs) is transformers.Gemma3ForConditionalGeneration
    assert not any(info.values()), info
    logits = hf_images.logits_of(theirs.eval(), found.tokens, found.images)
    np.testing.assert_array_equal(logits, found.logits)


def test_a_text_model_is_saved_as_one(found, tmp_path):
    config = dataclasses.replace(found.model.config, vision_config=None)
    model = params_safetensors.create_model_from_safe_tensors(found.folder, config)
    folder = hf_export.save_pretrained(model, tmp_path / "saved")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    assert type(theirs) is transformers.Gemma3ForCausalLM
    with torch.no_grad():
        logits = theirs.eval()(torch.tensor(found.tokens[2:])).logits.numpy()
    np.testing.assert_allclose(logits, found.logits[2:], atol=1e-5)


@pytest.mark.parametrize("preset", ["gemma3_4b_it", "gemma3_12b_pt", "gemma3_27b_it"])
def test_presets_are_written_as_transformers_understands_and_read_back(preset):
    config = getattr(model_lib.ModelConfig, preset)(text_only=False)
    raw = json.loads(json.dumps(hf_layout.write_config(config)))
    assert hf_config.config_from_hf(raw) == config
    theirs = transformers.Gemma3Config(**raw)
    tower, default = theirs.vision_config, transformers.Gemma3Config()
    assert (tower.hidden_size, tower.num_hidden_layers, tower.image_size) == (1152, 27, 896)
    assert theirs.image_token_id == default.image_token_id == 262_144
    assert theirs.text_config.sliding_window == 1024


def test_config_files_of_the_hub_say_little_and_mean_the_preset():
    """The fields of google/gemma-3-4b-it, whose other fields are defaults."""
    raw = {
        "model_type": "gemma3",
        "boi_token_index": 255_999,
        "eoi_token_index": 256_000,
        "image_token_index": 262_144,
        "mm_tokens_per_image": 256,
        "text_config": {
            "model_type": "gemma3_text",
            "hidden_size": 2560,
            "intermediate_size": 10_240,
            "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        },
        "vision_config": {
            "hidden_size": 1152,
            "image_size": 896,
            "intermediate_size": 4304,
            "model_type": "siglip_vision_model",
            "num_attention_heads": 16,
            "num_hidden_layers": 27,
            "patch_size": 14,
            "vision_use_head": False,
        },
    }
    preset = model_lib.ModelConfig.gemma3_4b_it(text_only=False)
    assert hf_config.config_from_hf(raw) == preset
    without = {key: value for key, value in raw.items() if key != "vision_config"}
    assert hf_config.config_from_hf(without) == model_lib.ModelConfig.gemma3_4b_it()


def test_all_problems_of_a_vision_config_are_listed(found):
    raw = json.loads((found.folder / "config.json").read_text())
    raw["vision_config"] |= {"hidden_act": "relu", "num_channels": 4, "patch_size": 5}
    raw["text_config"] |= {"hidden_size": 0}
    with pytest.raises(ValueError, match="Hugging Face config") as error:
        hf_config.config_from_hf(raw)
    message = str(error.value)
    for part in ("vision_config.hidden_act", "num_channels is 4", "a multiple of patch_size"):
        assert part in message
    assert "text_config: hidden_size" in message
