"""Preference data and models that the tests of this folder share."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from tests.sft import toys
from tunix.data.preference import preference_batching, preference_tokens
from tunix.models.transformer import decoder
from tunix.sft.dpo import dpo_trainer, inputs


def tokens(rng, length):
    return rng.integers(1, toys.VOCAB, length).astype(np.int32)


def answer(rng, length):
    return preference_tokens.Answer(tokens(rng, length), np.ones(length, bool))


def pairs(count, *, seed=0):
    """Pairs of unequal lengths, answers of a single token among them."""
    rng = np.random.default_rng(seed)
    return [
        preference_tokens.TokenizedPair(
            prompt=tokens(rng, 1 + i % 5),
            chosen=answer(rng, 1 + (3 * i) % 4),
            rejected=answer(rng, 1 + (2 * i + 1) % 5),
        )
        for i in range(count)
    ]


def ratings(count, *, seed=0):
    rng = np.random.default_rng(seed)
    return [
        preference_tokens.TokenizedRating(
            prompt=tokens(rng, 1 + i % 5),
            answer=answer(rng, 1 + (3 * i) % 4),
            is_desirable=i % 3 != 0,
            foreign=answer(rng, 1 + i % 3),
        )
        for i in range(count)
    ]


def padded(found, *, num_rows=None, length=16):
    """One row per pair."""
    return preference_batching.collate_pairs(
        [[pair] for pair in found], num_rows=num_rows or len(found), length=length
    )


def as_ids(found, *, left):
    """The pairs as ids and masks, padded on one side."""

    def block(rows):
        width = 1 + max(map(len, rows))
        ids, mask = np.full((len(rows), width), 7, np.int32), np.zeros((len(rows), width), bool)
        for i, row in enumerate(rows):
            span = slice(width - len(row), width) if left else slice(0, len(row))
            ids[i, span], mask[i, span] = row, True
        return ids, mask

    return inputs.TrainingInput(
        *block([pair.prompt for pair in found]),
        *block([pair.chosen.tokens for pair in found]),
        *block([pair.rejected.tokens for pair in found]),
    )


def separate_logps(model, found, *, length=16):
    """Log-probabilities ``[N, 2]`` by full logits, each answer in a row of its own."""
    rows, mask = np.zeros((2, 2 * len(found), length), np.int32)
    for i, (prompt, ids) in enumerate((p.prompt, a.tokens) for p in found for a in p.answers):
        both = np.concatenate([prompt, ids])
        rows[i, : len(both)], mask[i, len(prompt) : len(both)] = both, 1
    logits, _ = model(jnp.asarray(rows), None, None, None)
    log_probs = jax.nn.log_softmax(logits[:, :-1], axis=-1)
    picked = jnp.take_along_axis(log_probs, jnp.asarray(rows[:, 1:, None]), axis=-1)[..., 0]
    return (picked * mask[:, 1:]).sum(axis=1).reshape(-1, 2)


def trainer(config=None, *, model=None, ref_model=None, optimizer=None, **settings):
    """A DPO trainer of a tiny decoder with another one as reference."""
    settings = {"eval_every_n_steps": 100, "pbar_description": None, **settings}
    return dpo_trainer.DPOTrainer(
        toys.tiny_decoder() if model is None else model,
        toys.tiny_decoder(seed=1) if ref_model is None else ref_model,
        optax.sgd(0.1) if optimizer is None else optimizer,
        config or dpo_trainer.DPOTrainingConfig(**settings),
    )


def copy_of(model: decoder.Decoder):
    """An equal model with arrays of its own."""
    graphdef, state = nnx.split(model)
    return nnx.merge(graphdef, jax.tree.map(jnp.copy, state))
