"""What the comparisons of whole trainers share: SmolLM2-135M-Instruct and their inputs.

The model directory (Hugging Face format) comes from the variable BENCH_MODEL; every side reads it.
"""

import os
import zlib

import numpy as np

LEARNING_RATE = 1e-5

ROWS = 8
LENGTH = 256
PADDED_LENGTHS = (256, 224, 192, 160, 128, 96, 64, 32)
PACKED_LENGTHS = (256, *(224, 32, 192, 64, 160, 96) * 2, 128, 128)
"""Fill the 8 rows to the last token, so that no packer is at an advantage."""
PADDED_TOKENS = sum(PADDED_LENGTHS) - len(PADDED_LENGTHS)
"""Trained tokens: nothing predicts the first token of an example."""
PACKED_TOKENS = sum(PACKED_LENGTHS) - len(PACKED_LENGTHS)

PAIR_PROMPT = 128
PAIR_ANSWERS = ((128, 64), (112, 80), (96, 112), (80, 96))
"""Tokens of the chosen and the rejected answers, with EOS."""

NUM_PROMPTS = 6
NUM_SAMPLES = 8
NEW_TOKENS = 20
VOCABULARY = 49152
UNUSED_TOKEN = VOCABULARY - 1
"""Sampled once in about 10^8 tokens: as the only EOS, it makes all completions equally long."""
LORA_RANK, LORA_ALPHA = 16, 32.0
RL_LEARNING_RATE = 1e-6
"""So small that completions stay as they are and every step is the same work."""

WORDS = " time people water house world school place name hand part child eye woman man day night"


def model_dir() -> str:
    """Return the directory of the model."""
    return os.environ["BENCH_MODEL"]


def examples(lengths: tuple[int, ...]) -> list[list[int]]:
    """Return token rows of the given lengths."""
    rng = np.random.default_rng(0)
    return [rng.integers(3, VOCABULARY, length).tolist() for length in lengths]


def pairs() -> list[dict[str, str]]:
    """Return preference pairs as text; each word with its space in front is one token."""
    rng = np.random.default_rng(0)
    words = WORDS.split()

    def text(num_tokens: int) -> str:
        return "".join(f" {words[i]}" for i in rng.integers(0, len(words), num_tokens))

    return [
        {
            "prompt": text(PAIR_PROMPT),
            "chosen": text(chosen - 1),  # EOS is added by the libraries
            "rejected": text(rejected - 1),
        }
        for chosen, rejected in PAIR_ANSWERS
    ]


def questions() -> list[str]:
    """Return questions of the quickstart's task, about 50 tokens in the chat template."""
    numbers = ((34, 57), (81, 26), (12, 31), (67, 89), (45, 44), (90, 18))
    return [f"Which number is larger, {a} or {b}? Answer with just the number." for a, b in numbers]


def noise_reward(texts: list[str]) -> list[float]:
    """Return a number in [0, 1) for each text, so that no group's rewards are all equal."""
    return [zlib.crc32(text.encode()) / 2**32 for text in texts]
