"""GRPO with a slow reward function, made ahead or not: the side of bench_async_rl.py."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import optax
import worker
from flax import nnx

from tunix.models.transformer import config as config_lib
from tunix.models.transformer import decoder
from tunix.rl import rl_cluster
from tunix.rl.grpo import grpo_learner
from tunix.rl.rollout import base_rollout

STEPS = 8
REWARD_SECONDS = 1.0
PROMPTS, GENERATIONS, TOKENS = 16, 8, 64

MODEL = config_lib.TransformerConfig(
    num_layers=2,
    vocab_size=2048,
    embed_dim=256,
    hidden_dim=512,
    num_heads=4,
    head_dim=64,
    num_kv_heads=2,
    rope_theta=1e4,
    norm_eps=1e-5,
    weight_tying=True,
)


class Tokenizer:
    """One id per character."""

    def encode(self, text: str) -> list[int]:
        """Return ids from 2 on."""
        return [ord(c) - 30 for c in text]

    def decode(self, ids: Any) -> str:
        """Return one character per id."""
        return "".join(chr(int(i) + 30) for i in ids)

    def bos_id(self) -> int:
        """Return an id that no text has."""
        return 1

    def eos_id(self) -> int:
        """Return an id that no text has."""
        return 0

    def pad_id(self) -> int:
        """Return an id that no text has."""
        return 0


def slow_reward(completions: list[str]) -> list[float]:
    """Return some reward, late: a judge behind a network."""
    time.sleep(REWARD_SECONDS)
    return [sum(ord(c) % 2 for c in text) / TOKENS for text in completions]


def setup(off_policy_steps: int) -> Callable[[], dict[str, Any]]:
    """Return what trains for ``STEPS`` steps; everything is compiled."""
    cluster = rl_cluster.RLCluster(
        actor=decoder.Decoder(MODEL, rngs=nnx.Rngs(0)),
        tokenizer=Tokenizer(),
        cluster_config=rl_cluster.ClusterConfig(
            training_config=rl_cluster.RLTrainingConfig(
                actor_optimizer=optax.adam(1e-4),
                eval_every_n_steps=1000,
                rollout_micro_batch_size=PROMPTS * GENERATIONS,
                pbar_description=None,
            ),
            rollout_config=base_rollout.RolloutConfig(
                max_tokens_to_generate=TOKENS, max_prompt_length=16, eos_tokens=[]
            ),
        ),
    )
    learner = grpo_learner.GRPOLearner(
        cluster,
        grpo_learner.GRPOConfig(
            num_generations=GENERATIONS, beta=0.0, off_policy_steps=off_policy_steps
        ),
        slow_reward,
    )
    prompts = {"prompts": [f"{i} and {i}" for i in range(PROMPTS)]}
    learner.train([prompts] * 3)
    logger = cluster.actor_trainer.metrics_logger

    def body() -> dict[str, Any]:
        learner.train([prompts] * STEPS)
        phases = ("rollout", "score", "train", "wait_rollout", "wait_trainer")
        return {
            phase: float(np.mean(logger.get_metric_history("", f"time/{phase}", "train")[-STEPS:]))
            for phase in phases
            if logger.metric_exists("", f"time/{phase}", "train")
        } | {"staleness": float(logger.get_metric_history("", "staleness", "train")[-1])}

    return body


if __name__ == "__main__":
    worker.serve(
        {
            f"off_policy_steps={k}": worker.Case(
                setup=lambda k=k: setup(k), work=STEPS, unit="step"
            )
            for k in (0, 1, 2)
        }
    )
