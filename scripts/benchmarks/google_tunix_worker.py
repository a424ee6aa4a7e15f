"""google-tunix's side, through its public interface, with the model of ``shapes.py``."""

from collections.abc import Callable
from typing import Any

import shapes
import worker


def model() -> Any:
    """Return the model of the comparison."""
    from flax import nnx

    from tunix.models.llama3 import model as llama3

    config = llama3.ModelConfig(**shapes.MODEL)
    return llama3.Llama3(config, rngs=nnx.Rngs(0))


STATE: dict[str, Any] = {}


def inputs(batch: Any) -> dict[str, Any]:
    """Return what the loss function is called with."""
    from tunix.sft import utils

    return {
        "input_tokens": batch.input_tokens,
        "input_mask": batch.input_mask,
        "positions": utils.build_positions_from_mask(batch.input_mask != 0),
        "attention_mask": utils.make_causal_attn_mask(batch.input_mask != 0),
    }


def trainer() -> Any:
    """Return a new trainer."""
    import optax

    from tunix.sft import peft_trainer

    config = peft_trainer.TrainingConfig(eval_every_n_steps=10**9)
    made = peft_trainer.PeftTrainer(model(), optax.adamw(shapes.LEARNING_RATE), config)
    STATE["trainer"] = made
    return made.with_gen_model_input_fn(inputs)


def batches(count: int) -> list[Any]:
    """Return batches to train on."""
    from tunix.sft import peft_trainer

    return [
        peft_trainer.TrainingInput(input_tokens=tokens, input_mask=mask)
        for tokens, mask in shapes.batches(count)
    ]


def train() -> Callable[[], None]:
    """Build the trainer outside of the clock."""
    made = trainer()
    # train() skips as many batches as it has trained before, so that it can resume.
    return lambda: made.train(batches(made.iter_steps + shapes.STEPS))


def first_step() -> Callable[[], None]:
    """Build and import everything inside the clock: what a user waits for."""
    return lambda: trainer().train(batches(1))


def temporary_mb() -> float:
    """Return the scratch memory of the compiled step."""
    from flax import nnx

    made = STATE["trainer"]
    step = nnx.jit(made.create_train_step_fn(), donate_argnames=("optimizer",))
    lowered = step.lower(made.model, made.optimizer, batches(1)[0])
    return lowered.compile().memory_analysis().temp_size_in_bytes / 2**20


def decode(**options: Any) -> Callable[[], Callable[[], dict[str, Any]]]:
    """Return the setup of a decoding case."""

    def setup() -> Callable[[], dict[str, Any]]:
        from tunix.generate import sampler

        cache = sampler.CacheConfig(
            cache_size=shapes.PROMPT + shapes.NEW,
            num_layers=shapes.MODEL["num_layers"],
            num_kv_heads=shapes.MODEL["num_kv_heads"],
            head_dim=shapes.MODEL["head_dim"],
        )
        made = sampler.Sampler(model(), shapes.Numbers(), cache)

        def body() -> dict[str, Any]:
            output = made(shapes.prompts(), shapes.NEW, max_prompt_length=shapes.PROMPT, **options)
            return {"tokens": sum(len(tokens) for tokens in output.tokens)}

        return body

    return setup


CASES = {
    "train": worker.Case(train, shapes.STEPS, "steps", temporary_mb),
    "first_step": worker.Case(first_step, 1, "steps"),
    "greedy": worker.Case(decode(), shapes.BATCH * shapes.NEW, "tokens"),
    "top_p": worker.Case(
        decode(temperature=1.0, top_p=0.9, seed=0), shapes.BATCH * shapes.NEW, "tokens"
    ),
}

if __name__ == "__main__":
    worker.serve(CASES)
