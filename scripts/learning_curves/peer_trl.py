"""TRL's side of the comparison of reward curves, on a CPU."""

from typing import Any

import datasets
import peer_process
import peft
import transformers
import trl
import trl_worker


def main() -> None:
    """Train as the parent says."""
    parent = peer_process.Parent()
    job = parent.job
    transformers.set_seed(job["seed"])  # adapters are drawn before the trainer sets its own seed
    tokenizer = trl_worker.tokenizer()

    def reward(
        completions: list[Any], completion_ids: list[list[int]], row: list[int], **_: Any
    ) -> list[float]:
        texts = [messages[0]["content"] for messages in completions]
        ended = [ids[-1] == tokenizer.eos_token_id for ids in completion_ids]
        return parent.score(row, texts, ended, [len(ids) for ids in completion_ids])

    rows = [
        {"prompt": [{"role": "user", "content": question}], "row": row}
        for row, question in enumerate(parent.questions)
    ]
    trainer = trl.GRPOTrainer(
        trl_worker.model("float32"),
        reward_funcs=reward,
        args=config(job),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=peft.LoraConfig(
            r=job["lora_rank"], lora_alpha=job["lora_alpha"], target_modules="all-linear"
        ),
    )
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    trainer.train()
    rates = [row["learning_rate"] for row in trainer.state.log_history if "learning_rate" in row]
    parent.finish({"trained_parameters": trained, "learning_rates": rates})


def config(job: dict[str, Any]) -> trl.GRPOConfig:
    """Return the job's settings; what is said here only to undo a default is marked."""
    changes = trl_worker.options(
        max_steps=job["num_rollouts"],
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=job["warmup_steps"],
    )
    return trl.GRPOConfig(
        **changes,
        seed=job["seed"],
        bf16=True,  # autocast, as in the comparison of speed
        learning_rate=job["learning_rate"],
        adam_beta1=job["b1"],
        adam_beta2=job["b2"],
        adam_epsilon=job["eps"],
        weight_decay=0.0,
        max_grad_norm=0.0,  # default 1
        shuffle_dataset=False,  # default True
        loss_type="grpo",  # default "dapo": a mean over tokens
        per_device_train_batch_size=job["batch_size"] * job["num_generations"],
        num_generations=job["num_generations"],
        max_completion_length=job["max_new_tokens"],
        temperature=job["temperature"],
        epsilon=job["epsilon"],
        beta=0.0,
    )


if __name__ == "__main__":
    main()
