"""google-tunix's side, through its public interface, with the model of ``shapes.py``."""

import shapes
import worker


class Numbers:
    """A tokenizer whose text is token ids: ``"3 14 15"``."""

    def encode(self, text, **_):
        """Return the ids."""
        return [int(word) for word in text.split()]

    def decode(self, ids, **_):
        """Return the text."""
        return " ".join(str(i) for i in ids)

    EncodeAsIds, DecodeIds = encode, decode

    def bos_id(self):
        """Return the id that starts a sequence."""
        return 1

    def eos_id(self):
        """Return an id that is never sampled in practice, so that all tokens are made."""
        return 2

    def pad_id(self):
        """Return the filler."""
        return 0


def model():
    from flax import nnx

    from tunix.models.llama3 import model as llama3

    config = llama3.ModelConfig(**shapes.MODEL)
    return llama3.Llama3(config, rngs=nnx.Rngs(0))


STATE = {}


def trainer():
    import optax

    from tunix.sft import peft_trainer, utils

    def inputs(batch):
        return {
            "input_tokens": batch.input_tokens,
            "input_mask": batch.input_mask,
            "positions": utils.build_positions_from_mask(batch.input_mask != 0),
            "attention_mask": utils.make_causal_attn_mask(batch.input_mask != 0),
        }

    config = peft_trainer.TrainingConfig(eval_every_n_steps=10**9)
    made = peft_trainer.PeftTrainer(model(), optax.adamw(shapes.LEARNING_RATE), config)
    STATE["trainer"] = made
    return made.with_gen_model_input_fn(inputs)


def batches(count):
    from tunix.sft import peft_trainer

    return [
        peft_trainer.TrainingInput(input_tokens=tokens, input_mask=mask)
        for tokens, mask in shapes.batches(count)
    ]


def train():
    made = trainer()
    # train() skips as many batches as it has trained before, so that it can resume.
    return lambda: made.train(batches(made.iter_steps + shapes.STEPS))


def first_step():
    """Build the trainer inside the clock, too: what a user waits for."""

    def body():
        trainer().train(batches(1))

    return body


def temporary_mb():
    from flax import nnx

    made = STATE["trainer"]
    step = nnx.jit(made.create_train_step_fn(), donate_argnames=("optimizer",))
    lowered = step.lower(made.model, made.optimizer, batches(1)[0])
    return lowered.compile().memory_analysis().temp_size_in_bytes / 2**20


def decode(**options):
    def setup():
        from tunix.generate import sampler

        cache = sampler.CacheConfig(
            cache_size=shapes.PROMPT + shapes.NEW,
            num_layers=shapes.MODEL["num_layers"],
            num_kv_heads=shapes.MODEL["num_kv_heads"],
            head_dim=shapes.MODEL["head_dim"],
        )
        made = sampler.Sampler(model(), Numbers(), cache)

        def body():
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
