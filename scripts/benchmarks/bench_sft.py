"""A step of supervised tuning of SmolLM2-135M, against TRL and google-tunix.

    python scripts/benchmarks/bench_sft.py --model-dir DIR [--trl-python P] [--peer-python P]

All weights, AdamW, float32 parameters, 8 rows of 256 tokens: examples of 32 to 256 tokens, one per
row and padded, then 15 examples packed so that the rows are full. Numbers are trained tokens,
without padding. TRL runs in float32 and in bfloat16 autocast, in both without activation
checkpointing, which is its fastest; ``checkpointing`` is its default. It packs as it does by
default (``bfd``: all rows end to end in one, with a mask), and ``wrapped``: rows cut anywhere,
whose examples see each other. google-tunix does not pack.
"""

import harness

TRL_PADDED = ("autocast", "checkpointing", "float32")
TRL_PACKED = ("autocast", "wrapped", "float32")


def main() -> None:
    """Run both comparisons."""
    options = harness.trainers_parser(__doc__).parse_args()
    harness.compare_trainers("sft_padded", options, trl=TRL_PADDED, peer=True)
    harness.compare_trainers("sft_packed", options, trl=TRL_PACKED, peer=False)


if __name__ == "__main__":
    main()
