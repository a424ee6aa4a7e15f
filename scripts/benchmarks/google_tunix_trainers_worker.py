"""google-tunix's trainers on SmolLM2-135M-Instruct, through its public interface: SFT and GRPO."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import google_tunix_worker
import numpy as np
import smollm2
import worker


def model(mesh: Any) -> Any:
    """Return the model, float32 as the file and as the library's own default."""
    import jax.numpy as jnp

    from tunix.models.llama3 import model as llama3
    from tunix.models.llama3 import params

    path = pathlib.Path(smollm2.model_dir())
    found = json.loads((path / "config.json").read_text())
    config = llama3.ModelConfig(
        num_layers=found["num_hidden_layers"],
        vocab_size=found["vocab_size"],
        embed_dim=found["hidden_size"],
        hidden_dim=found["intermediate_size"],
        num_heads=found["num_attention_heads"],
        head_dim=found["head_dim"],
        num_kv_heads=found["num_key_value_heads"],
        rope_theta=int(found["rope_theta"]),
        norm_eps=found["rms_norm_eps"],
        weight_tying=True,
    )
    return params.create_model_from_safe_tensors(str(path), config, mesh, jnp.float32)


def one_device() -> Any:
    """Return a mesh of one device."""
    import jax

    return jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)


def sft() -> Callable[[], dict[str, Any]]:
    """Set up one full step on the padded rows."""
    import optax

    from tunix.sft import peft_trainer

    shape = (smollm2.ROWS, smollm2.LENGTH)
    tokens, mask = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for row, ids in enumerate(smollm2.examples(smollm2.PADDED_LENGTHS)):
        tokens[row, : len(ids)], mask[row, : len(ids)] = ids, 1
    batch = peft_trainer.TrainingInput(input_tokens=tokens, input_mask=mask)
    config = peft_trainer.TrainingConfig(eval_every_n_steps=10**9)
    trainer = peft_trainer.PeftTrainer(
        model(one_device()), optax.adamw(smollm2.LEARNING_RATE), config
    ).with_gen_model_input_fn(google_tunix_worker.inputs)

    def body() -> dict[str, Any]:
        # train() skips as many batches as it has trained before, so that it can resume.
        trainer.train([batch] * (trainer.iter_steps + 1))
        return {}

    return body


def reward(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    """Return the benchmark's reward."""
    del prompts
    return smollm2.noise_reward(completions)


def grpo() -> Callable[[], dict[str, Any]]:
    """Set up one step of LoRA adapters on the quickstart's questions."""
    import optax
    import qwix
    import transformers
    from flax import nnx

    from tunix.rl import rl_cluster
    from tunix.rl.grpo import grpo_learner
    from tunix.rl.rollout import base_rollout

    mesh = one_device()
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2.model_dir())
    base = model(mesh)
    provider = qwix.LoraProvider(
        module_path=".*(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj).*",
        rank=smollm2.LORA_RANK,
        alpha=smollm2.LORA_ALPHA,
    )
    actor = qwix.apply_lora_to_model(base, provider, **base.get_model_input(), rngs=nnx.Rngs(0))
    # qwix derives a class from the model's and loses its pytree=False: flax 0.12 would then find no
    # parameters in it.
    type(actor)._pytree__is_pytree = False
    size = smollm2.NUM_PROMPTS
    config = rl_cluster.ClusterConfig(
        role_to_mesh=dict.fromkeys(rl_cluster.Role, mesh),
        training_config=rl_cluster.RLTrainingConfig(
            actor_optimizer=optax.adamw(smollm2.RL_LEARNING_RATE),
            eval_every_n_steps=10**9,
            max_steps=10**6,
            mini_batch_size=size,
            train_micro_batch_size=size,
        ),
        rollout_config=base_rollout.RolloutConfig(
            max_tokens_to_generate=smollm2.NEW_TOKENS,
            max_prompt_length=64,
            kv_cache_size=64 + smollm2.NEW_TOKENS,
            temperature=1.0,
            top_p=1.0,  # without it every reply is greedy, whatever the temperature
            eos_tokens=[smollm2.UNUSED_TOKEN],
        ),
    )
    cluster = rl_cluster.RLCluster(actor=actor, tokenizer=tokenizer, cluster_config=config)
    settings = grpo_learner.GRPOConfig(num_generations=smollm2.NUM_SAMPLES, beta=0.0)
    learner = grpo_learner.GRPOLearner(cluster, settings, reward_fns=reward)
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": q}], tokenize=False, add_generation_prompt=True
        )
        for q in smollm2.questions()
    ]
    batch = {"prompts": np.array(texts)}  # it slices and repeats the leaves of a batch

    def body() -> dict[str, Any]:
        before = cluster.actor_trainer.train_steps
        learner.train([batch])
        if (steps := cluster.actor_trainer.train_steps - before) != 1:
            raise RuntimeError(f"expected one step, got {steps}")
        return {}

    return body


CASES = {
    "sft_padded": worker.Case(sft, smollm2.PADDED_TOKENS, "tokens"),
    "grpo": worker.Case(grpo, 1, "steps"),
}

if __name__ == "__main__":
    worker.serve(CASES)
