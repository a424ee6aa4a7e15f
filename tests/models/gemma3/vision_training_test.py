"""Gradients reach what sees images, and a trainer learns from them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tunix.models import lora
from tunix.models.gemma3 import model as model_lib
from tunix.models.gemma3 import vision
from tunix.ops import linear_logprob
from tunix.sft import loss_output, peft_trainer

SOFT = 7
TOWER = vision.SigLIPConfig(
    image_height=8,
    image_width=8,
    patch_size=(2, 2),
    width=12,
    depth=2,
    mlp_dim=16,
    num_heads=3,
    num_mm_tokens_per_image=4,
    soft_token_placeholder=SOFT,
    start_of_image_token=5,
    end_of_image_token=6,
)


PARTS = ("vision_tower", "multi_modal_projector")


def make(**changes):
    settings = {
        "num_layers": 2,
        "vocab_size": 32,
        "embed_dim": 8,
        "hidden_dim": 16,
        "num_heads": 2,
        "num_kv_heads": 1,
        "head_dim": 4,
        "sliding_window_size": 4,
        "attention_types": ("local", "global"),
        "precision": "exact",
        "vision_config": TOWER,
    }
    config = model_lib.ModelConfig.gemma3_270m(**settings | changes)
    return model_lib.Gemma3(config, rngs=nnx.Rngs(0))


def loss_of_images(model, input_tokens, input_mask, images):
    """What a user writes to train on images: the text's loss, with the images handed on."""
    hidden, _ = model.hidden(input_tokens, images=images)
    weights = jnp.asarray(input_mask)[:, 1:].astype(jnp.float32)
    total, _ = linear_logprob.linear_cross_entropy(
        hidden[:, :-1].reshape(-1, hidden.shape[-1]),
        model.output_head().weight,
        jnp.asarray(input_tokens)[:, 1:].reshape(-1),
        weights.reshape(-1),
        precision="exact",
    )
    return loss_output.LossOutput(loss_sum=total, weight_sum=weights.sum(), metrics={})


def batch():
    """Return rows whose answer only the image tells: which of two tokens says dark or bright."""
    answers = np.array([20, 21, 21, 20])
    tokens = np.array([[2, 5, SOFT, SOFT, SOFT, SOFT, 6, 9, answer] for answer in answers])
    mask = np.zeros(tokens.shape, np.float32)
    mask[:, -1] = 1.0
    # Half an image is bright: a norm may take out how bright all of it is.
    images = np.random.default_rng(0).normal(size=(4, 1, 8, 8, 3)).astype(np.float32) * 0.1
    images[answers == 21, :, :4] += 1.0
    return {"input_tokens": tokens, "input_mask": mask, "images": images}


def gradients(model):
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def of(params, rest, given):
        def loss(params):
            return loss_of_images(nnx.merge(graphdef, params, rest), **given).loss_sum

        return jax.grad(loss)(params)

    flat = nnx.to_flat_state(of(params, rest, batch()))
    return {".".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in flat}


def test_every_weight_of_tower_and_projector_gets_a_gradient():
    found = gradients(make(freeze_vision_tower=False))
    of_images = {name: grad for name, grad in found.items() if name.split(".")[0] in PARTS}
    assert len(of_images) == 23
    for name, grad in of_images.items():
        assert np.isfinite(grad).all(), name
        # A bias of keys adds the same to all scores of a query: its gradient is zero.
        assert (np.abs(grad).max() > 1e-9) or name.endswith("k_proj.b"), name


@pytest.mark.slow
def test_the_gradient_of_a_pixel_is_the_slope_of_the_loss():
    model, given = make(), batch()

    @jax.jit
    def loss(images):
        return loss_of_images(model, given["input_tokens"], given["input_mask"], images).loss_sum

    images = jnp.asarray(given["images"])
    direction = jax.random.normal(jax.random.key(0), images.shape)
    slope = (loss(images + 1e-2 * direction) - loss(images - 1e-2 * direction)) / 2e-2
    np.testing.assert_allclose((jax.grad(loss)(images) * direction).sum(), slope, rtol=2e-2)


def weights_of(model):
    flat = nnx.to_flat_state(nnx.state(model))
    return {".".join(map(str, path)): np.array(leaf[...]) for path, leaf in flat}


def train(model, steps):
    config = peft_trainer.TrainingConfig(eval_every_n_steps=1000, pbar_description=None)
    optimizer = optax.adamw(1e-2, weight_decay=0.01)
    trainer = peft_trainer.PeftTrainer(model, optimizer, config).with_loss_fn(loss_of_images)
    trainer.train([batch()] * steps)
    losses = trainer.metrics_logger.get_metric_history("", "loss", "train")
    trainer.close()
    return losses


@pytest.mark.slow
def test_a_trainer_learns_what_only_the_image_tells_with_the_tower_frozen():
    globally = {"attention_types": ("global",), "sliding_window_size": None}
    model = make(num_layers=1, embed_dim=16, local_rope_theta=None, **globally)
    before = weights_of(model)
    losses = train(model, steps=50)
    assert losses[0] > 2.0
    assert losses[-1] < 0.1 < np.log(2)  # without looking, one of two answers costs log 2
    changed = {name for name, value in weights_of(model).items() if (value != before[name]).any()}
    assert not any(name.startswith("vision_tower") for name in changed)
    assert changed >= {"multi_modal_projector.norm_scale", "multi_modal_projector.proj.w"}


def test_adapters_are_for_the_text_alone():
    model = make()
    lora.apply_lora(model, lora.LoraConfig(rank=2, alpha=4.0), rngs=nnx.Rngs(1))
    adapted = {path[0] for path, _ in nnx.to_flat_state(nnx.state(model, nnx.LoRAParam))}
    assert adapted == {"layers"}
