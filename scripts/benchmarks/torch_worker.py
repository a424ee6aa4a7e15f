"""PyTorch's side on a CPU: ``transformers`` with the weights of SmolLM2-135M-Instruct.

The model directory (Hugging Face format) comes from the variable BENCH_MODEL.
"""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import shapes
import torch
import transformers
import worker

PROMPT, NEW = shapes.SMOLLM2_PROMPT, shapes.SMOLLM2_NEW


def model(dtype: torch.dtype) -> Any:
    """Return the model."""
    return transformers.AutoModelForCausalLM.from_pretrained(os.environ["BENCH_MODEL"], dtype=dtype)


def train(dtype: torch.dtype, autocast: bool) -> Callable[[], Callable[[], dict[str, Any]]]:
    """Return the setup of a full training step."""

    def setup() -> Callable[[], dict[str, Any]]:
        net = model(dtype)
        net.train()
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-5)
        rng = np.random.default_rng(0)
        tokens = torch.tensor(rng.integers(3, net.config.vocab_size, (shapes.BATCH, shapes.LENGTH)))

        def body() -> dict[str, Any]:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = net(tokens, labels=tokens).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return {"loss": float(loss)}

        return body

    return setup


def sample(batch: int, dtype: torch.dtype) -> Callable[[], Callable[[], dict[str, Any]]]:
    """Return the setup of a sampling case."""

    def setup() -> Callable[[], dict[str, Any]]:
        net = model(dtype).eval()
        rng = np.random.default_rng(0)
        tokens = torch.tensor(rng.integers(3, net.config.vocab_size, (batch, PROMPT)))

        def body() -> dict[str, Any]:
            with torch.inference_mode():
                output = net.generate(
                    tokens,
                    attention_mask=torch.ones_like(tokens),
                    do_sample=True,
                    temperature=1.0,
                    top_k=0,
                    top_p=1.0,
                    repetition_penalty=1.0,
                    min_new_tokens=NEW,
                    max_new_tokens=NEW,
                    pad_token_id=0,
                )
            return {"tokens": int(output[:, PROMPT:].numel())}

        return body

    return setup


CASES = {
    "train_float32": worker.Case(train(torch.float32, False), 1, "steps"),
    "train_bfloat16": worker.Case(train(torch.bfloat16, False), 1, "steps"),
    "train_autocast": worker.Case(train(torch.float32, True), 1, "steps"),
}
for _batch in (8, 48):
    for _name, _dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        CASES[f"sample_{_batch}_{_name}"] = worker.Case(
            sample(_batch, _dtype), _batch * NEW, "tokens"
        )

if __name__ == "__main__":
    worker.serve(CASES)
