"""The host runs ahead, but not too far."""

import pytest

from tunix.sft import inflight_throttler


class Computation:
    """Stands for an array; notes when someone waits for it."""

    def __init__(self, waited):
        self.waited = waited

    def block_until_ready(self):
        self.waited.append(self)
        return self


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_it_waits_for_the_oldest_when_the_limit_is_reached(limit):
    waited = []
    throttler = inflight_throttler.InflightThrottler(limit)
    computations = [Computation(waited) for _ in range(5)]
    for i, computation in enumerate(computations):
        throttler.wait_for_next()
        assert waited == computations[: max(0, i - limit + 1)]
        throttler.add_computation(computation)
    throttler.wait_for_all()
    assert waited == computations


def test_a_limit_below_one_is_refused():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        inflight_throttler.InflightThrottler(0)
