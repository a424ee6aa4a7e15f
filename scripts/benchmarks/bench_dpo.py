"""A DPO step of SmolLM2-135M, against TRL.

    python scripts/benchmarks/bench_dpo.py --model-dir DIR [--trl-python P]

All weights, AdamW, float32 parameters, a second model as the reference whose log-probabilities are
computed in every step; 4 pairs of a prompt of 128 tokens and answers of 64 to 128. Ours reads a
prompt once for both answers.
"""

import harness


def main() -> None:
    """Run the comparison."""
    options = harness.trainers_parser(__doc__).parse_args()
    variants = ("autocast", "checkpointing", "float32")
    harness.compare_trainers("dpo", options, trl=variants, peer=False)


if __name__ == "__main__":
    main()
