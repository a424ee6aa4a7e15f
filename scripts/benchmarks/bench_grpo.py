"""A GRPO step of SmolLM2-135M on the quickstart's questions, against TRL and google-tunix.

    python scripts/benchmarks/bench_grpo.py --model-dir DIR [--trl-python P] [--peer-python P]

6 prompts of about 50 tokens, 8 samples each, LoRA of rank 16 on every projection, no KL penalty,
one update. Every completion has 20 tokens on every side (nothing ends it before), and the reward is
noise, so that no group is without an advantage: sides do the same work. TRL runs in bfloat16
autocast, with float32 and with bfloat16 base weights.
"""

import harness


def main() -> None:
    """Run the comparison."""
    options = harness.trainers_parser(__doc__).parse_args()
    harness.compare_trainers("grpo", options, trl=("autocast", "bfloat16"), peer=True)


if __name__ == "__main__":
    main()
