"""The script that checks a device: what it says of right, wrong and missing numbers."""

import json

import jax
import numpy as np
import pytest

from scripts import check_device


def lines_of(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.fixture
def checks(monkeypatch):
    """Return a function that runs the comparison on given numbers only."""

    def run(found, wanted):
        def answer(value):
            if isinstance(value, Exception):
                raise value
            return value

        monkeypatch.setattr(check_device, "kernels", lambda precision: answer(found))
        monkeypatch.setattr(check_device, "computed_on_cpu", lambda *_: {"kernels": wanted})
        return check_device.check_numbers([])

    return run


def test_equal_numbers_are_right_in_both_precisions(checks, capsys):
    numbers = {"value/out": np.asarray([3.0, 4.0], np.float32)}
    assert checks(numbers, numbers)
    lines = lines_of(capsys)
    assert [line["precision"] for line in lines] == ["exact", "fast"]
    assert all(line["ok"] and line["error"] == 0.0 and line["number"] == "out" for line in lines)


@pytest.mark.parametrize(
    ("found", "error", "right"),
    [
        pytest.param([3.0, 4.01], 0.002, [False, True], id="bfloat16 is no float32"),
        pytest.param([3.0, 5.0], 0.2, [False, False], id="wrong is wrong"),
        pytest.param([3.0, np.nan], np.nan, [False, False], id="NaN is never right"),
    ],
)
def test_a_wrong_number_is_told_with_its_error(checks, capsys, found, error, right):
    wanted = {"value/out": np.asarray([3.0, 4.0])}
    assert not checks({"value/out": np.asarray(found)}, wanted)
    lines = lines_of(capsys)
    assert [line["ok"] for line in lines] == right
    np.testing.assert_allclose([line["error"] for line in lines], error, rtol=1e-6)


def test_a_check_that_fails_is_a_line_and_the_rest_goes_on(checks, capsys):
    assert not checks(RuntimeError("no such kernel"), {"value/out": np.ones(1)})
    lines = lines_of(capsys)
    assert [line["failed"] for line in lines] == ["RuntimeError: no such kernel"] * 2


def test_a_reference_that_fails_is_not_taken_for_right(checks):
    assert not checks({"value/out": np.ones(1)}, None)


def test_log_probabilities_and_frequencies_have_errors_of_their_own():
    found = {"logps_0": np.asarray([-1.0, -2.5]), "frequencies": np.asarray([0.5, 0.5])}
    wanted = {"logps_0": np.asarray([-1.0, -2.0]), "frequencies": np.asarray([0.75, 0.25])}
    assert list(check_device.errors(found, wanted)) == [
        ("logps_0", "logps", 0.5),
        ("frequencies", "frequency", 0.25),
    ]


def test_a_pass_of_the_tiny_model_is_a_number_of_weights_tokens_and_seed_alone():
    first, second = (check_device.forward("tiny", "exact")["value/logits"] for _ in range(2))
    assert first.shape == (2, 48, 512)
    np.testing.assert_array_equal(first, second)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_the_tiny_model_is_right_by_the_code_of_cpus_and_of_accelerators(
    monkeypatch, capfd, backend
):
    jax.clear_caches()  # what was traced before has taken its branches
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    skip = [] if backend == "cpu" else ["--skip-speed"]  # its shapes are for a real one
    assert check_device.main(["--sizes", "tiny", *skip]) == 0
    jax.clear_caches()
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert {line["check"] for line in lines if "check" in line} == {
        "kernels",
        *(f"{name} tiny" for name in ("forward", "train", "lora", "grpo", "sample")),
    }
    speeds = [line for line in lines if "speed" in line]
    assert len(speeds) == (4 if backend == "cpu" else 0)
    assert all(line["tokens_per_second"] > 0 and line["compile_seconds"] > 0 for line in speeds)
    assert lines[-1] == {"all_right": True, "all_measured": True}
