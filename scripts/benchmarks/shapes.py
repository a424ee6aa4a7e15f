"""What all sides of a comparison share: shapes, inputs, and a tokenizer of numbers."""

import numpy as np

MODEL = {
    "num_layers": 4,
    "vocab_size": 32768,
    "embed_dim": 384,
    "hidden_dim": 1152,
    "num_heads": 6,
    "head_dim": 64,
    "num_kv_heads": 2,
    "rope_theta": 10_000,
    "norm_eps": 1e-5,
    "weight_tying": True,
}
BATCH = 8
LENGTH = 256
PROMPT = 64
NEW = 64
STEPS = 3
LEARNING_RATE = 1e-4

SMOLLM2_PROMPT = 48
SMOLLM2_NEW = 20


def batches(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return ``count`` batches of tokens ``[B, T]`` and all-ones masks."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, MODEL["vocab_size"], (count, BATCH, LENGTH), dtype=np.int32)
    return [(row, np.ones_like(row)) for row in tokens]


def prompts() -> list[str]:
    """Return prompts as text for a tokenizer whose words are token ids."""
    rng = np.random.default_rng(1)
    rows = rng.integers(3, MODEL["vocab_size"], (BATCH, PROMPT - 1))
    return [" ".join(str(token) for token in row) for row in rows]


class Numbers:
    """A tokenizer whose text is token ids: ``"3 14 15"``."""

    def encode(self, text: str, **_: object) -> list[int]:
        """Return the ids."""
        return [int(word) for word in text.split()]

    def decode(self, ids: list[int], **_: object) -> str:
        """Return the text."""
        return " ".join(str(i) for i in ids)

    EncodeAsIds, DecodeIds = encode, decode

    def bos_id(self) -> int:
        """Return the id that starts a sequence."""
        return 1

    def eos_id(self) -> int:
        """Return an id that is never sampled in practice, so that all tokens are made."""
        return 2

    def pad_id(self) -> int:
        """Return the filler."""
        return 0
