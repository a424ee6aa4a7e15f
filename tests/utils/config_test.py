import dataclasses
import math
import pathlib
from collections.abc import Iterator, Mapping

import numpy as np
import pytest

from tunix.cli.schemas import optimizers
from tunix.generate import sampling_params
from tunix.models import lora_config
from tunix.rl.grpo import dapo_learner, grpo_config
from tunix.sft.dpo import dpo_config
from tunix.utils import config as config_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(config_lib.Config):
    count: int = 1
    rate: float | None = 0.5
    is_on: bool = True
    path: str = ""
    anything: list[int] | None = None
    shares: tuple[float, ...] = ()
    by_name: Mapping[str, float] = dataclasses.field(default_factory=dict)
    file_bytes: int = dataclasses.field(default=1, metadata=config_lib.ANY_SIZE)

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.count < 1:
            yield f"count must be at least 1, got {self.count}"


def test_fields_of_a_wrong_type_are_all_reported_before_any_is_compared():
    with pytest.raises(config_lib.ConfigError) as caught:
        Settings(count="2", rate=[0.1], is_on="false", path=3)  # pyright: ignore
    assert caught.value.problems == (
        "count must be a whole number, got '2'",
        "rate must be a number or None, got [0.1]",
        "is_on must be True or False, got 'false'",
        "path must be text, got 3",
    )


@pytest.mark.parametrize("value", [None, 2.5, "", (), print])
def test_a_count_is_a_whole_number(value):
    with pytest.raises(config_lib.ConfigError, match="count must be a whole number"):
        Settings(count=value)


def test_what_counts_as_a_number_or_text_is_one():
    Settings(count=np.int64(2), rate=np.float32(0.5), path=pathlib.Path("a"))  # pyright: ignore
    Settings(count=2.0, rate=1, is_on=np.bool_(True), anything="not checked")  # pyright: ignore


def test_what_no_number_can_be_still_fails():
    with pytest.raises(config_lib.ConfigError, match="count must be at least 1, got 0"):
        Settings(count=0)


def test_algorithms_say_it_in_words_too():
    with pytest.raises(config_lib.ConfigError, match="num_generations must be a whole number"):
        grpo_config.GRPOConfig(num_generations="4")  # pyright: ignore
    with pytest.raises(config_lib.ConfigError, match="beta must be a number, got None"):
        dapo_learner.DAPOConfig(beta=None)  # pyright: ignore


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"rate": math.nan}, "rate must be a finite number, got nan"),
        ({"rate": -math.inf}, "rate must be a finite number, got -inf"),
        ({"rate": np.float32("inf")}, "rate must be a finite number, got inf"),
        ({"rate": 1e39}, "rate must be a finite number in float32 (at most 3.4e38), got 1e+39"),
        (
            {"rate": 1e-50},
            "rate must be 0 or a number that float32 holds (at least 1.2e-38), got 1e-50",
        ),
        ({"shares": (0.5, math.nan)}, "shares must be a finite number, got nan"),
        ({"by_name": {"a": 1.0, "b": math.inf}}, "by_name must be a finite number, got inf"),
        ({"count": 2**31}, "count must be at most 2147483647, got 2147483648"),
        ({"count": -(2**31) - 1}, "count must be at least -2147483648, got -2147483649"),
        (
            {"count": 10**10_000},
            "count must be at most 2147483647, got a number of about 10000 digits",
        ),
        ({"count": np.int64(2**40)}, "count must be at most 2147483647, got 1099511627776"),
    ],
)
def test_numbers_that_devices_cannot_hold_are_refused_once_and_by_name(settings, problem):
    with pytest.raises(config_lib.ConfigError) as caught:
        Settings(**settings)
    assert caught.value.problems == (problem,)


def test_numbers_at_the_edges_of_what_devices_hold_are_accepted():
    Settings(rate=float(np.finfo(np.float32).max), count=2**31 - 1, shares=(1.2e-38, 0.0, -1e38))
    Settings(file_bytes=2**40)


def test_a_number_that_is_none_does_not_hide_other_faults():
    with pytest.raises(config_lib.ConfigError) as caught:
        Settings(rate=math.nan, path=3, count=0)  # pyright: ignore
    assert sorted(caught.value.problems) == [
        "count must be at least 1, got 0",
        "path must be text, got 3",
        "rate must be a finite number, got nan",
    ]


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda x: optimizers.OptimizerOptions(learning_rate=x), id="learning rate"),
        pytest.param(lambda x: optimizers.OptimizerOptions(weight_decay=x), id="weight decay"),
        pytest.param(lambda x: optimizers.OptimizerOptions(max_grad_norm=x), id="gradient norm"),
        pytest.param(lambda x: grpo_config.GRPOConfig(beta=x), id="beta of GRPO"),
        pytest.param(lambda x: grpo_config.GRPOConfig(reward_weights=[1.0, x]), id="a reward"),
        pytest.param(
            lambda x: dpo_config.DPOTrainingConfig(eval_every_n_steps=1, rpo_alpha=x), id="DPO"
        ),
        pytest.param(
            lambda x: sampling_params.SamplingParams(max_new_tokens=1, temperature=x),
            id="temperature",
        ),
        pytest.param(lambda x: lora_config.LoraConfig(rank=1, alpha=x), id="LoRA"),
        pytest.param(
            lambda x: lora_config.LoraConfig(rank=1, alpha=1.0, alpha_pattern={"q": x}),
            id="LoRA of one layer",
        ),
    ],
)
@pytest.mark.parametrize("number", [math.nan, math.inf, 1e308])
def test_settings_all_over_the_library_are_finite(make, number):
    with pytest.raises(config_lib.ConfigError, match="must be a finite number"):
        make(number)
