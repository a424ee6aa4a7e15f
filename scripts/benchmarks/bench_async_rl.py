"""GRPO whose reward function sleeps for a second, synchronous and one and two steps ahead.

    python scripts/benchmarks/bench_async_rl.py

The facts are the mean seconds of a step that each phase took in the first call; with
``off_policy_steps`` phases overlap, so their sum is longer than the step.
"""

import harness


def main() -> None:
    """Compare the three."""
    made = harness.parser(__doc__)
    options = made.parse_args()
    cases = [f"off_policy_steps={k}" for k in (1, 2, 0)]
    sides = [harness.Side(name=case, worker="async_rl_worker.py", case=case) for case in cases]
    harness.compare("grpo_reward_1s", sides, repeats=options.repeats)


if __name__ == "__main__":
    main()
