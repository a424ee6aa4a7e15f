"""Our trainers on SmolLM2-135M-Instruct: SFT, DPO and GRPO."""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import shapes
import smollm2
import worker


def model() -> Any:
    """Return the model."""
    import tunix

    return tunix.AutoModel.from_pretrained(smollm2.model_dir())[0]


def one_batch_at_a_time(trainer: Any, batches: Iterable[Any]) -> Callable[[], dict[str, Any]]:
    """Return a body that trains on the next batch and returns the loss."""
    iterator = iter(batches)

    def body() -> dict[str, Any]:
        trainer.train(itertools.islice(iterator, 1))
        losses = trainer.metrics_logger.get_metric_history("", "loss", "train")
        return {"loss": float(losses[-1])}

    return body


def sft(*, packing: bool) -> Callable[[], Callable[[], dict[str, Any]]]:
    """Return the setup of one full step on the padded or the packed rows."""

    def setup() -> Callable[[], dict[str, Any]]:
        import numpy as np
        import optax

        import tunix
        from tunix.data import sft_config, sft_data, tokenize

        lengths = smollm2.PACKED_LENGTHS if packing else smollm2.PADDED_LENGTHS
        settings = sft_config.SftDataConfig(
            max_target_length=smollm2.LENGTH,
            batch_size=smollm2.ROWS,
            packing=packing,
            num_epochs=None,
        )
        rows = []
        for ids in smollm2.examples(lengths):
            weights = np.ones(len(ids), np.float32)
            weights[0] = 0.0
            rows.append(tokenize.TokenizedExample(np.asarray(ids, np.int32), weights))
        trainer = tunix.PeftTrainer(
            model(),
            optax.adamw(smollm2.LEARNING_RATE),
            tunix.TrainingConfig(eval_every_n_steps=10**9),
        )
        batches = sft_data.make_batches(rows, shapes.Numbers(), settings)
        return one_batch_at_a_time(trainer, batches)

    return setup


def dpo() -> Callable[[], dict[str, Any]]:
    """Set up one full step on the pairs, with a reference of its own, computed in every step."""
    import optax

    from tunix.data.preference import (
        preference_batches,
        preference_config,
        preference_formats,
        preference_tokens,
    )
    from tunix.sft.dpo import dpo_trainer
    from tunix.tokenizers import tokenizer_adapter

    tokenizer = tokenizer_adapter.load_tokenizer(smollm2.model_dir())
    pairs = [
        preference_tokens.tokenize_pair(preference_formats.Pair(**pair), tokenizer)
        for pair in smollm2.pairs()
    ]
    settings = preference_config.PreferenceDataConfig(batch_size=len(pairs), num_epochs=None)
    trainer = dpo_trainer.DPOTrainer(
        model(),
        model(),
        optax.adamw(smollm2.LEARNING_RATE),
        dpo_trainer.DPOTrainingConfig(eval_every_n_steps=10**9),
    )
    return one_batch_at_a_time(trainer, preference_batches.pair_batches(pairs, settings))


def reward(completions: list[str], **_: Any) -> list[float]:
    """Return the benchmark's reward."""
    return smollm2.noise_reward(completions)


def grpo() -> Callable[[], dict[str, Any]]:
    """Set up one step of LoRA adapters on the quickstart's questions."""
    import optax
    from flax import nnx

    import tunix
    from tunix.models import lora
    from tunix.tokenizers import tokenizer_adapter

    actor = model()
    adapters = lora.LoraConfig(rank=smollm2.LORA_RANK, alpha=smollm2.LORA_ALPHA)
    lora.apply_lora(actor, adapters, rngs=nnx.Rngs(0))
    cluster = tunix.RLCluster(
        actor=actor,
        tokenizer=tokenizer_adapter.load_tokenizer(smollm2.model_dir()),
        cluster_config=tunix.ClusterConfig(
            training_config=tunix.RLTrainingConfig(
                actor_optimizer=optax.adamw(smollm2.RL_LEARNING_RATE),
                eval_every_n_steps=10**9,
                rollout_micro_batch_size=smollm2.NUM_PROMPTS * smollm2.NUM_SAMPLES,
            ),
            rollout_config=tunix.RolloutConfig(
                max_tokens_to_generate=smollm2.NEW_TOKENS,
                max_prompt_length=64,
                temperature=1.0,
                eos_tokens=[smollm2.UNUSED_TOKEN],
            ),
        ),
    )
    settings = tunix.GRPOConfig(num_generations=smollm2.NUM_SAMPLES, beta=0.0)
    learner = tunix.GRPOLearner(cluster, settings, reward_fns=reward)
    batch = {"prompts": [[{"role": "user", "content": q}] for q in smollm2.questions()]}
    names = ("loss", "completion_length", "dead_groups")

    def body() -> dict[str, Any]:
        learner.train([batch])
        logger = cluster.actor_trainer.metrics_logger
        return {name: float(logger.get_metric_history("", name, "train")[-1]) for name in names}

    return body


CASES = {
    "sft_padded": worker.Case(sft(packing=False), smollm2.PADDED_TOKENS, "tokens"),
    "sft_packed": worker.Case(sft(packing=True), smollm2.PACKED_TOKENS, "tokens"),
    "dpo": worker.Case(dpo, 1, "steps"),
    "grpo": worker.Case(grpo, 1, "steps"),
}

if __name__ == "__main__":
    worker.serve(CASES)
