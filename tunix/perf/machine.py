"""What the machine says about itself: memory in use, and how fast it could compute."""

import pathlib
import resource
import sys
from collections.abc import Mapping

import jax

PEAK_FLOPS: Mapping[str, float] = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA L4": 121e12,
    "NVIDIA B200": 2250e12,
}
"""Dense bfloat16 operations per second of one device, from the vendors' data sheets; SXM boards."""


def peak_flops(device_kind: str) -> float | None:
    """Return the peak of a kind of device (``jax.Device.device_kind``), ``None`` if unknown."""
    matches = [name for name in PEAK_FLOPS if device_kind.startswith(name)]
    return PEAK_FLOPS[max(matches, key=len)] if matches else None


def host_bytes() -> int:
    """Return the resident memory of this process; its peak where the system has no ``/proc``."""
    status = pathlib.Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * resource.getpagesize()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def host_bytes_available() -> int | None:
    """Return how much more memory processes can get, ``None`` where the system does not say."""
    info = pathlib.Path("/proc/meminfo")
    if not info.exists():
        return None
    lines = dict(line.split(":", 1) for line in info.read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


def device_bytes() -> int | None:
    """Return the memory in use on the fullest local device, ``None`` if devices do not say."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    used = [one["bytes_in_use"] for one in stats if one and "bytes_in_use" in one]
    return max(used, default=None)


def device_bytes_limit() -> int | None:
    """Return the memory of the smallest local device, ``None`` if devices do not say."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    limits = [one["bytes_limit"] for one in stats if one and "bytes_limit" in one]
    return min(limits, default=None)
