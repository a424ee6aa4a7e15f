"""TRL's side on a CPU: its SFT, DPO and GRPO trainers on SmolLM2-135M-Instruct."""

import tempfile
from collections.abc import Callable
from typing import Any

import datasets
import paced
import peft
import smollm2
import torch
import transformers
import trl
import worker

COMMON = {
    "use_cpu": True,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "logging_steps": 1,
    "lr_scheduler_type": "constant",
    "max_steps": 10**6,
}


class StepEnd(transformers.TrainerCallback):
    """Ends a step when it is logged: its loss is known then, and the update is made."""

    def __init__(self) -> None:
        self.loop: paced.Paced | None = None

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Wait until the worker asks for the next step."""
        assert self.loop is not None
        names = ("loss", "completions/mean_length", "rewards/accuracies")
        self.loop.pause({name: float(logs[name]) for name in names if name in logs})


def options(**changes: Any) -> dict[str, Any]:
    """Return the settings that all trainers share, with changes.

    Checkpointing is off unless asked for: it would make TRL slower, and it is a choice.
    """
    return COMMON | {"output_dir": tempfile.mkdtemp(), "gradient_checkpointing": False} | changes


def model(dtype: str) -> Any:
    """Return the model."""
    return transformers.AutoModelForCausalLM.from_pretrained(
        smollm2.model_dir(), dtype=getattr(torch, dtype)
    )


def tokenizer() -> Any:
    """Return the model's tokenizer."""
    return transformers.AutoTokenizer.from_pretrained(smollm2.model_dir())


def stepper(make: Callable[[], Any]) -> Callable[[], Callable[[], dict[str, Any]]]:
    """Return the setup of a case whose body is one step of the trainer that ``make`` returns."""

    def setup() -> Callable[[], dict[str, Any]]:
        trainer, end = make(), StepEnd()
        trainer.add_callback(end)
        end.loop = paced.Paced(trainer.train)
        return end.loop.step

    return setup


def sft(packing: str | None, *, autocast: bool, **changes: Any) -> Callable[[], Any]:
    """Return what makes a trainer of the padded or the packed rows."""

    def make() -> trl.SFTTrainer:
        lengths = smollm2.PADDED_LENGTHS if packing is None else smollm2.PACKED_LENGTHS
        rows = [{"input_ids": ids, "labels": ids} for ids in smollm2.examples(lengths)]
        if packing is None:
            layout: dict[str, Any] = {"pad_to_multiple_of": smollm2.LENGTH}
        else:
            layout = {"packing": True, "packing_strategy": packing}
        config = trl.SFTConfig(
            **options(**layout, **changes),
            bf16=autocast,
            learning_rate=smollm2.LEARNING_RATE,
            per_device_train_batch_size=smollm2.ROWS,
            max_length=smollm2.LENGTH,
        )
        return trl.SFTTrainer(
            model("float32"),
            config,
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=tokenizer(),
        )

    return make


def dpo(*, autocast: bool, **changes: Any) -> Callable[[], Any]:
    """Return what makes a trainer of the pairs, with a reference of its own."""

    def make() -> trl.DPOTrainer:
        config = trl.DPOConfig(
            **options(**changes),
            bf16=autocast,
            learning_rate=smollm2.LEARNING_RATE,
            per_device_train_batch_size=len(smollm2.PAIR_ANSWERS),
            max_length=None,
        )
        return trl.DPOTrainer(
            model("float32"),
            ref_model=model("float32"),
            args=config,
            train_dataset=datasets.Dataset.from_list(smollm2.pairs()),
            processing_class=tokenizer(),
        )

    return make


def reward(completions: list[Any], **_: Any) -> list[float]:
    """Return the benchmark's reward of replies in the form of messages."""
    return smollm2.noise_reward([messages[0]["content"] for messages in completions])


def grpo(dtype: str, *, autocast: bool) -> Callable[[], Any]:
    """Return what makes a trainer of LoRA adapters on the quickstart's questions."""

    def make() -> trl.GRPOTrainer:
        rows = [{"prompt": [{"role": "user", "content": q}]} for q in smollm2.questions()]
        config = trl.GRPOConfig(
            **options(),
            bf16=autocast,
            learning_rate=smollm2.RL_LEARNING_RATE,
            per_device_train_batch_size=smollm2.NUM_PROMPTS * smollm2.NUM_SAMPLES,
            num_generations=smollm2.NUM_SAMPLES,
            max_completion_length=smollm2.NEW_TOKENS,
            temperature=1.0,
            beta=0.0,
            generation_kwargs={"min_new_tokens": smollm2.NEW_TOKENS},
        )
        adapters = peft.LoraConfig(
            r=smollm2.LORA_RANK, lora_alpha=smollm2.LORA_ALPHA, target_modules="all-linear"
        )
        return trl.GRPOTrainer(
            model(dtype),
            reward_funcs=reward,
            args=config,
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=tokenizer(),
            peft_config=adapters,
        )

    return make


PADDED, PACKED = smollm2.PADDED_TOKENS, smollm2.PACKED_TOKENS
CHECKPOINTING = {"gradient_checkpointing": True}

CASES = {
    "sft_padded_autocast": worker.Case(stepper(sft(None, autocast=True)), PADDED, "tokens"),
    "sft_padded_checkpointing": worker.Case(
        stepper(sft(None, autocast=True, **CHECKPOINTING)), PADDED, "tokens"
    ),
    "sft_padded_float32": worker.Case(stepper(sft(None, autocast=False)), PADDED, "tokens"),
    "sft_packed_autocast": worker.Case(stepper(sft("bfd", autocast=True)), PACKED, "tokens"),
    "sft_packed_float32": worker.Case(stepper(sft("bfd", autocast=False)), PACKED, "tokens"),
    "sft_packed_wrapped": worker.Case(stepper(sft("wrapped", autocast=True)), PACKED, "tokens"),
    "dpo_autocast": worker.Case(stepper(dpo(autocast=True)), 1, "steps"),
    "dpo_checkpointing": worker.Case(stepper(dpo(autocast=True, **CHECKPOINTING)), 1, "steps"),
    "dpo_float32": worker.Case(stepper(dpo(autocast=False)), 1, "steps"),
    "grpo_autocast": worker.Case(stepper(grpo("float32", autocast=True)), 1, "steps"),
    "grpo_bfloat16": worker.Case(stepper(grpo("bfloat16", autocast=True)), 1, "steps"),
}

if __name__ == "__main__":
    worker.serve(CASES)
