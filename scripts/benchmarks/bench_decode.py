"""Decoding 64 tokens after 64 for 8 rows, greedy and with top-p 0.9, against google-tunix.

    python scripts/benchmarks/bench_decode.py [--peer-python PYTHON]

The model is that of bench_train_step.py. Our numbers include the log-probability of every token,
which the other side does not compute.
"""

import harness


def main() -> None:
    """Run both comparisons."""
    options = harness.parser(__doc__).parse_args()
    for case in ("greedy", "top_p"):
        harness.compare(case, harness.sides(case, options.peer_python), repeats=options.repeats)


if __name__ == "__main__":
    main()
