"""What was measured before training, kept so that a continued run can still compare with it."""

import json
from collections.abc import Callable
from typing import Any

from tunix.data import fingerprint
from tunix.sft import run_directory

_DATA = "data"


def measured_once(
    directory: run_directory.RunDirectory,
    measure: Callable[[], dict[str, Any]],
    *,
    step: int,
    content: int | None,
) -> dict[str, Any] | None:
    """Return what ``measure`` says of the untrained model.

    Args:
        directory: The run, whose file of the first start is read if there is one.
        measure: Returns something that JSON can hold; called at step 0 only.
        step: Steps trained so far.
        content: Fingerprint of what is measured on.

    Returns:
        The measurement, or None if the run has begun and the file is gone.

    Raises:
        ValueError: If the run has begun and was measured on other data, or the file cannot be read.
    """
    if step == 0:
        directory.write_baseline(measure() | {_DATA: {fingerprint.KEY: content}})
    elif not directory.baseline.exists():
        return None
    try:
        found = json.loads(directory.baseline.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{directory.baseline}: not readable as JSON ({error}); delete it, and the run goes on "
            "without a comparison with the untrained model"
        ) from error
    fingerprint.require_same(found.pop(_DATA, {}), content, "the run on its held-out data")
    return found
