"""What the machine reports is what it does."""

import mmap

import numpy as np
import pytest

from tunix.perf import machine


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("cpu", None),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_the_peak_is_that_of_the_longest_name_that_fits(kind, peak):
    assert machine.peak_flops(kind) == peak


def test_host_memory_grows_with_what_is_held():
    size = 64 * 2**20
    before = machine.host_bytes()
    # Straight from the system: an allocator may hand out what other tests have given back to it.
    with mmap.mmap(-1, size) as held:
        np.frombuffer(held, np.uint8)[:] = 1
        assert 60 * 2**20 < machine.host_bytes() - before < 100 * 2**20


def test_available_memory_is_less_than_a_huge_machine_and_more_than_nothing():
    available = machine.host_bytes_available()
    assert available is not None
    assert 2**26 < available < 2**45


def test_devices_that_do_not_tell_are_not_guessed():
    # The CPU backend has no memory statistics.
    assert machine.device_bytes() is None
    assert machine.device_bytes_limit() is None
