"""The DPO loss of one plain batch: every answer in a row of its own, with its prompt.

For loops of one's own and for comparison; the trainer lays out rows that share their prompt and
adds up sums. Axes: ``B`` pairs, ``T`` tokens of a row, ``C`` tokens of an answer.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tunix.models import lora
from tunix.models.transformer import decoder as decoder_lib
from tunix.ops import dot as dot_lib
from tunix.ops import linear_logprob, visibility
from tunix.sft.dpo import preference_losses


@flax.struct.dataclass
class TrainExample:
    """Chosen answers in the first ``B`` rows, rejected ones in the others."""

    input_ids: Int[Array, "2*B T"]
    positions: Int[Array, "2*B T"]
    attention_mask: Bool[Array, "2*B T T"]
    ref_chosen_logps: Float[Array, " B"] | None
    ref_rejected_logps: Float[Array, " B"] | None
    completion_mask: Bool[Array, "2*B C"]
    """Which of the last ``C`` tokens count."""
    logits_to_keep: int = flax.struct.field(pytree_node=False)
    """``C``."""


def compute_logps(
    model: Any,
    input_ids: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    attention_mask: Bool[Array, "B T T"],
    logits_to_keep: int,
    completion_mask: Bool[Array, "B C"],
) -> Float[Array, " B"]:
    """Return the summed log-probability of the counting ones of each row's last ``C`` tokens."""
    targets = input_ids[:, -logits_to_keep:]
    if decoder_lib.has_hidden(model):
        seen = visibility.Visibility(positions, mask=attention_mask)
        hidden, _ = model.hidden(input_ids, seen)
        states = hidden[:, -logits_to_keep - 1 : -1]
        head = model.output_head()
        logps = linear_logprob.linear_logprob(
            states.reshape(-1, states.shape[-1]),
            head.weight,
            targets.reshape(-1),
            softcap=head.softcap,
            head_needs_grad=not lora.is_lora_enabled(model),
            precision=dot_lib.resolve_precision(model.config.precision),
        ).logps.reshape(targets.shape)
    else:
        logits, _ = model(input_ids, positions, None, attention_mask)
        kept = logits[:, -logits_to_keep - 1 : -1].astype(jnp.float32)
        log_probs = jax.nn.log_softmax(kept, axis=-1)
        logps = jnp.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]
    return jnp.where(completion_mask, logps, 0.0).sum(axis=1)


def dpo_loss_fn(
    model: Any,
    train_example: TrainExample,
    algorithm: str = "dpo",
    beta: float = 0.1,
    lambda_orpo: float = 0.1,
    label_smoothing: float = 0.0,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Return the mean loss of a batch, and means of its metrics.

    Args:
        model: The policy.
        train_example: The batch.
        algorithm: ``dpo`` (with reference log-probabilities) or ``orpo``.
        beta: How strongly the policy is held to the reference.
        lambda_orpo: Weight of ORPO's odds ratio term.
        label_smoothing: Probability that a label is wrong.

    Raises:
        ValueError: If the algorithm is unknown, or DPO lacks the reference.
    """
    pairs = _pairs(model, train_example)
    if algorithm == "orpo":
        losses = preference_losses.sft(pairs) + lambda_orpo * preference_losses.orpo(pairs)
        chosen, rejected = lambda_orpo * pairs.chosen_mean, lambda_orpo * pairs.rejected_mean
    elif algorithm == "dpo" and train_example.ref_chosen_logps is not None:
        losses = preference_losses.sigmoid(pairs, beta=beta, label_smoothing=label_smoothing)
        chosen, rejected = beta * pairs.chosen_ratio, beta * pairs.rejected_ratio
    else:
        raise ValueError(
            f"algorithm {algorithm!r}: must be 'orpo', or 'dpo' with ref_chosen_logps and "
            "ref_rejected_logps in the batch"
        )
    metrics = {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": (chosen > rejected).astype(jnp.float32),
        "logps/chosen": pairs.chosen,
        "logps/rejected": pairs.rejected,
    }
    return losses.mean(), {name: jax.lax.stop_gradient(x.mean()) for name, x in metrics.items()}


def _pairs(model: Any, example: TrainExample) -> preference_losses.Pairs:
    logps = compute_logps(
        model,
        example.input_ids,
        example.positions,
        example.attention_mask,
        example.logits_to_keep,
        example.completion_mask,
    )
    chosen, rejected = jnp.split(logps, 2)
    lengths = jnp.maximum(example.completion_mask.sum(axis=1), 1).astype(jnp.float32)
    zero = jnp.zeros_like(chosen)
    refs = (example.ref_chosen_logps, example.ref_rejected_logps)
    return preference_losses.Pairs(
        chosen, rejected, *(zero if ref is None else ref for ref in refs), *jnp.split(lengths, 2)
    )
