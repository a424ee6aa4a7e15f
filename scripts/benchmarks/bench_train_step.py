"""A full training step and the time to the first one, against google-tunix.

    python scripts/benchmarks/bench_train_step.py [--peer-python PYTHON]

Llama-shaped model (D=384, F=1152, 6 query and 2 key heads of 64, 4 layers, V=32768 tied), 8 rows of
256 tokens, AdamW, float32 parameters on both sides.
"""

import harness


def main() -> None:
    """Run both comparisons."""
    options = harness.parser(__doc__).parse_args()
    for case, repeats in (("train", options.repeats), ("first_step", 1)):
        harness.compare(case, harness.sides(case, options.peer_python), repeats=repeats)


if __name__ == "__main__":
    main()
