"""Tiny Gemma 3 models of transformers that see images, random in every weight."""

import jax.numpy as jnp
import numpy as np
import torch
import transformers

BOI, EOI, SOFT = 75, 76, 77
"""Ids of the tokens that start, end and stand for an image."""

TOKENS_PER_IMAGE, SIDE = 4, 16

TEXT = {
    "vocab_size": 80,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    # An image fits, a row does not.
    "sliding_window": 6,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "query_pre_attn_scalar": 8,
    "max_position_embeddings": 128,
}

VISION = {
    "hidden_size": 24,
    "intermediate_size": 40,
    # More than the text has, and not a divisor: its layers are counted on their own.
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "image_size": SIDE,
    "patch_size": 4,
    "vision_use_head": False,
}


def make(text=None, vision=None, **changes):
    """Return a float32 model whose every tensor is random, norms and biases included."""
    config = transformers.Gemma3Config(
        text_config=TEXT | (text or {}),
        vision_config=VISION | (vision or {}),
        **{
            "mm_tokens_per_image": TOKENS_PER_IMAGE,
            "image_token_index": SOFT,
            "boi_token_index": BOI,
            "eoi_token_index": EOI,
        }
        | changes,
    )
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Only SigLIP's norms are stored as they are; Gemma's lack the one.
            centre = 1.0 if "layer_norm" in name or "post_layernorm.weight" in name else 0.0
            is_bias = name.endswith("bias")
            is_gemma_norm = "vision_tower" not in name
            parameter.normal_(0.0 if is_bias or is_gemma_norm else centre, 0.1)
    return model


def image(soft=SOFT, tokens_per_image=TOKENS_PER_IMAGE):
    return [BOI, *[soft] * tokens_per_image, EOI]


def rows(soft=SOFT):
    """Return tokens of a row with two images, of one with a late one, and of one with none."""
    text = iter(np.random.default_rng(0).integers(3, 70, 99).tolist())
    take = lambda n: [next(text) for _ in range(n)]  # noqa: E731
    two = [2, *take(3), *image(soft), *take(2), *image(soft), *take(5)]
    one = [2, *take(14), *image(soft), *take(2)]
    return np.array([two, one, [2, *take(len(two) - 1)]])


def pixels(rows=3, images=2, side=SIDE):
    return np.random.default_rng(1).normal(size=(rows, images, side, side, 3)).astype(np.float32)


COUNTS = (2, 1, 0)
"""How many images the rows have."""


def logits_of(hf, tokens, images, counts=COUNTS):
    """Return the logits of transformers, which takes all images of all rows in one list."""
    given = np.concatenate([images[i, :count] for i, count in enumerate(counts)])
    ids = torch.tensor(tokens)
    with torch.no_grad():
        return hf(
            input_ids=ids,
            pixel_values=torch.tensor(given.transpose(0, 3, 1, 2)),
            token_type_ids=(ids == hf.config.image_token_id).long(),
        ).logits.numpy()


def logits_error(model, hf):
    """Return the largest difference between our logits and those of transformers."""
    tokens, images = rows(hf.config.image_token_id), pixels(side=hf.config.vision_config.image_size)
    ours, _ = model(jnp.asarray(tokens, jnp.int32), images=jnp.asarray(images))
    return float(np.abs(np.asarray(ours) - logits_of(hf, tokens, images)).max())
