"""The guide to a model of one's own, carried out; and what registration refuses."""

import dataclasses
import re

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.repo import source
from tunix.models import automodel, dummy_model_creator, families
from tunix.models.hf import hf_export
from tunix.models.llama3 import model as llama3
from tunix.models.transformer import config as config_lib
from tunix.models.transformer import layout

GUIDE = source.ROOT / "docs" / "how-to" / "your_own_model.md"
TINY = config_lib.TransformerConfig(
    num_layers=2,
    vocab_size=31,
    embed_dim=16,
    hidden_dim=24,
    num_heads=4,
    head_dim=4,
    num_kv_heads=2,
    rope_theta=1e4,
    norm_eps=1e-5,
    precision="exact",
)


@pytest.fixture
def registry(monkeypatch):
    """Families that are forgotten after the test."""
    monkeypatch.setattr(families, "FAMILIES", dict(families.FAMILIES))


@pytest.fixture
def guide(registry):
    """Names that the guide's code defines, after running it."""
    names = {}
    for block in re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL):
        exec(compile(block, str(GUIDE), "exec"), names)
    return names


def test_the_model_of_the_guide_saves_and_loads_with_equal_logits(guide, tmp_path):
    model = dummy_model_creator.create_dummy_model(guide["ParallelLlama"], TINY, scale=0.2)
    tokens = jnp.arange(1, 13).reshape(2, 6)
    expected, _ = model(tokens)
    np.testing.assert_allclose(
        layout.unroll_layers(model)(tokens)[0], expected, rtol=1e-5, atol=1e-5
    )
    hf_export.save_pretrained(model, tmp_path / "saved")
    loaded, _ = automodel.AutoModel.from_pretrained(str(tmp_path / "saved"), precision="exact")
    assert type(loaded) is guide["ParallelLlama"]
    assert loaded.config == model.config
    np.testing.assert_array_equal(loaded(tokens)[0], expected)


def test_the_layer_of_the_guide_is_the_one_computed(guide):
    """One layer and no attention: what is left is ``x + mlp(norm(x))``, by hand."""
    config = dataclasses.replace(TINY, num_layers=1, scan_layers=False)
    model = dummy_model_creator.create_dummy_model(guide["ParallelLlama"], config, scale=0.2)
    one = model.layers[0]
    one.self_attn.o_proj.w[...] = jnp.zeros_like(one.self_attn.o_proj.w[...])
    tokens = jnp.arange(1, 7)[None]
    x = model.embed(tokens)
    y = x / jnp.sqrt((x**2).mean(-1, keepdims=True) + TINY.norm_eps)
    gate, up = y @ one.mlp.gate_proj.w[...], y @ one.mlp.up_proj.w[...]
    x = x + (gate / (1 + jnp.exp(-gate)) * up) @ one.mlp.down_proj.w[...]
    x = x / jnp.sqrt((x**2).mean(-1, keepdims=True) + TINY.norm_eps)
    np.testing.assert_allclose(model.hidden(tokens)[0], x, rtol=1e-5, atol=1e-5)


def test_a_family_whose_class_extends_that_of_another_is_found_by_its_own(registry):
    class Mine(llama3.Llama3):
        """A family of its own."""

    own = dataclasses.replace(families.FAMILIES["llama3"], hf_types=("mine",), model_class=Mine)
    families.register("mine", own)
    assert families.family_of_model(Mine(TINY, rngs=nnx.Rngs(0))) is own
    plain = llama3.Llama3(TINY, rngs=nnx.Rngs(0))
    assert families.family_of_model(plain) is families.FAMILIES["llama3"]


def test_everything_that_is_taken_is_named_at_once(registry):
    with pytest.raises(ValueError, match="family 'qwen2' cannot be registered") as error:
        families.register("qwen2", families.FAMILIES["llama3"])
    message = str(error.value)
    assert "there is a family 'qwen2' already" in message
    assert "hf_types ['llama'] belong to family 'llama3'" in message
    assert "Llama3 belongs to family 'llama3'; subclass it" in message


def test_a_family_that_no_file_could_name_is_refused(registry):
    nameless = dataclasses.replace(
        families.FAMILIES["llama3"], hf_types=(), model_class=type("M", (llama3.Llama3,), {})
    )
    with pytest.raises(ValueError, match="hf_types is empty"):
        families.register("mine", nameless)
    assert "mine" not in families.FAMILIES
