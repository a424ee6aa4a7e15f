"""Our side of the comparison of reward curves."""

import jax
import peer_optax
import peer_process
import tunix_trainers_worker
from flax import nnx

import tunix
from tunix.models import lora
from tunix.tokenizers import tokenizer_adapter


def main() -> None:
    """Train as the parent says."""
    parent = peer_process.Parent()
    job = parent.job
    actor = tunix_trainers_worker.model()
    adapters = lora.LoraConfig(rank=job["lora_rank"], alpha=job["lora_alpha"])
    lora.apply_lora(actor, adapters, rngs=nnx.Rngs(job["seed"]))
    cluster = tunix.RLCluster(
        actor=actor,
        tokenizer=tokenizer_adapter.load_tokenizer(job["model_dir"]),
        cluster_config=tunix.ClusterConfig(
            training_config=tunix.RLTrainingConfig(
                actor_optimizer=peer_optax.optimizer(job),
                eval_every_n_steps=10**9,
                max_steps=job["num_rollouts"],
                rollout_micro_batch_size=job["batch_size"] * job["num_generations"],
            ),
            rollout_config=tunix.RolloutConfig(
                max_tokens_to_generate=job["max_new_tokens"],
                max_prompt_length=job["max_prompt_length"],
                temperature=job["temperature"],
                seed=job["seed"],
            ),
        ),
    )

    def reward(
        completions: list[str],
        completion_ids: list[list[int]],
        finish_reasons: list[str],
        row: list[int],
    ) -> list[float]:
        ended = [reason == "stop" for reason in finish_reasons]
        return parent.score(row, completions, ended, [len(ids) for ids in completion_ids])

    settings = tunix.GRPOConfig(
        num_generations=job["num_generations"], epsilon=job["epsilon"], beta=0.0
    )
    learner = tunix.GRPOLearner(cluster, settings, reward_fns=reward)
    size = job["batch_size"]
    learner.train(
        {
            "prompts": [[{"role": "user", "content": q}] for q in parent.questions[i : i + size]],
            "row": list(range(i, i + size)),
        }
        for i in range(0, len(parent.questions), size)
    )
    trained = sum(x.size for x in jax.tree.leaves(nnx.state(actor, nnx.LoRAParam)))
    parent.finish({"trained_parameters": trained, "learning_rates": peer_optax.rates(job)})


if __name__ == "__main__":
    main()
