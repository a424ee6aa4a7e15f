"""google-tunix's side of the comparison of reward curves, through its public interface."""

from collections.abc import Sequence
from typing import Any

import google_tunix_trainers_worker
import jax
import numpy as np
import peer_optax
import peer_process
import qwix
import transformers
from flax import nnx

from tunix.rl import rl_cluster
from tunix.rl.grpo import grpo_learner
from tunix.rl.rollout import base_rollout

PROJECTIONS = ".*(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj).*"


class Rollout:
    """Keeps the tokens of the newest replies: a reward function of google-tunix gets their text."""

    def __init__(self, cluster: rl_cluster.RLCluster):
        self.updates_before: list[int] = []
        self._cluster = cluster
        self._texts: list[str] = []
        self._tokens: list[Any] = []
        self._generate = cluster.generate
        cluster.generate = self._recorded

    def _recorded(self, *args: Any, **kwargs: Any) -> base_rollout.RolloutOutput:
        self.updates_before.append(self._cluster.actor_trainer.train_steps)
        output = self._generate(*args, **kwargs)
        self._texts += list(output.text)
        self._tokens += list(output.tokens)
        return output

    def take_lengths(self, texts: Sequence[str]) -> list[int]:
        """Return the tokens of each of the replies, an EOS at its end not counted.

        Raises:
            ValueError: If these are not the replies sampled since the last call.
        """
        if list(texts) != self._texts:
            raise ValueError("the replies to reward are not those that were sampled last")
        lengths = [len(tokens) for tokens in self._tokens]
        self._texts, self._tokens = [], []
        return lengths


def main() -> None:
    """Train as the parent says."""
    parent = peer_process.Parent()
    job = parent.job
    tokenizer = transformers.AutoTokenizer.from_pretrained(job["model_dir"])
    mesh = google_tunix_trainers_worker.one_device()
    actor = adapted(google_tunix_trainers_worker.model(mesh), job)
    cluster = rl_cluster.RLCluster(
        actor=actor, tokenizer=tokenizer, cluster_config=cluster_config(job, mesh, tokenizer)
    )
    rollout = Rollout(cluster)

    def reward(prompts: list[str], completions: list[str], row: Any, **_: Any) -> list[float]:
        del prompts
        lengths = rollout.take_lengths(completions)
        # A reply that ends with its last possible token has one token less: the EOS is left out.
        ended = [length < job["max_new_tokens"] for length in lengths]
        with_end = [length + flag for length, flag in zip(lengths, ended, strict=True)]
        return parent.score(row, completions, ended, with_end)

    settings = grpo_learner.GRPOConfig(
        num_generations=job["num_generations"], epsilon=job["epsilon"], beta=0.0
    )
    learner = grpo_learner.GRPOLearner(cluster, settings, reward_fns=reward)
    learner.train(batches(parent.questions, tokenizer, job["batch_size"]))
    trained = sum(x.size for x in jax.tree.leaves(nnx.state(actor, nnx.LoRAParam)))
    parent.finish(
        {
            "trained_parameters": trained,
            "learning_rates": peer_optax.rates(job),
            "updates_before_rollout": rollout.updates_before,
        }
    )


def batches(questions: Sequence[str], tokenizer: Any, size: int) -> list[dict[str, np.ndarray]]:
    """Return the questions as text in the chat template, a rollout's at a time."""
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        for question in questions
    ]
    return [
        {"prompts": np.array(texts[i : i + size]), "row": np.arange(i, i + size)}
        for i in range(0, len(texts), size)
    ]


def adapted(model: Any, job: dict[str, Any]) -> Any:
    """Return the model with adapters on every projection."""
    provider = qwix.LoraProvider(
        module_path=PROJECTIONS,
        rank=job["lora_rank"],
        alpha=job["lora_alpha"],
        # Uniform in ±1/sqrt(in), as peft and we do; by default it is ±sqrt(6/in).
        lora_a_initializer=nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
    )
    rngs = nnx.Rngs(job["seed"])
    actor = qwix.apply_lora_to_model(model, provider, **model.get_model_input(), rngs=rngs)
    # As in the benchmarks: flax 0.12 would find no parameters in the class that qwix derives.
    type(actor)._pytree__is_pytree = False
    return actor


def cluster_config(job: dict[str, Any], mesh: Any, tokenizer: Any) -> rl_cluster.ClusterConfig:
    """Return how to sample and train."""
    size = job["batch_size"]
    return rl_cluster.ClusterConfig(
        role_to_mesh=dict.fromkeys(rl_cluster.Role, mesh),
        training_config=rl_cluster.RLTrainingConfig(
            actor_optimizer=peer_optax.optimizer(job),
            eval_every_n_steps=10**9,
            max_steps=job["num_rollouts"],
            mini_batch_size=size,
            # Equal parts of a mean over replies, so only memory changes: 6 GB instead of 13.
            train_micro_batch_size=1,
            rollout_micro_batch_size=size,
        ),
        rollout_config=base_rollout.RolloutConfig(
            max_tokens_to_generate=job["max_new_tokens"],
            max_prompt_length=job["max_prompt_length"],
            kv_cache_size=job["max_prompt_length"] + job["max_new_tokens"],
            temperature=job["temperature"],
            top_p=1.0,  # with None it decodes greedily, whatever the temperature
            seed=jax.random.PRNGKey(job["seed"]),
            eos_tokens=[tokenizer.eos_token_id],
        ),
    )


if __name__ == "__main__":
    main()
