import dataclasses
import pathlib
from collections.abc import Iterator

import numpy as np
import pytest

from tunix.rl.grpo import dapo_learner, grpo_config
from tunix.utils import config as config_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(config_lib.Config):
    count: int = 1
    rate: float | None = 0.5
    is_on: bool = True
    path: str = ""
    anything: list[int] | None = None

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
