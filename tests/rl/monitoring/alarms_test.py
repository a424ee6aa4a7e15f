import pytest

from tunix.rl.monitoring import alarms
from tunix.utils import config as config_lib
from tunix.utils import json_lines

CALM = {
    "reward": 0.5,
    "reward_std": 0.4,
    "reward/format": 1.0,
    "completion_length": 20.0,
    "truncated": 0.1,
    "dead_groups": 0.3,
    "mismatch_kl": 1e-5,
    "entropy": 1.0,
}
UP = {**CALM, "reward": 0.7}
CONFIG = alarms.AlarmConfig(window=2)


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        pytest.param(CALM, [], id="calm"),
        pytest.param(UP, [], id="learning"),
        pytest.param({**CALM, "dead_groups": 0.95}, ["dead_groups"], id="dead groups"),
        pytest.param({**CALM, "truncated": 0.6}, ["truncated"], id="cut off"),
        pytest.param({**CALM, "mismatch_kl": 0.02}, ["mismatch"], id="mismatch"),
        pytest.param({**CALM, "entropy": 0.05}, ["entropy"], id="entropy collapse"),
        pytest.param({**UP, "completion_length": 45.0}, ["length_drift"], id="longer and better"),
        pytest.param({**UP, "completion_length": 9.0}, ["length_drift"], id="shorter and better"),
        pytest.param({**CALM, "completion_length": 45.0}, [], id="longer, not better"),
        pytest.param({**UP, "reward/format": 0.7}, ["reward_drift/format"], id="format lost"),
        pytest.param({**CALM, "reward/format": 0.7}, [], id="format lost, reward flat"),
    ],
)
def test_each_alarm_has_its_condition(now, expected):
    found = alarms.conditions([CALM, CALM], [now, now], CONFIG)
    assert list(found) == expected
    off = alarms.AlarmConfig(
        window=2,
        dead_groups=None,
        truncated=None,
        mismatch_kl=None,
        entropy=None,
        length_factor=None,
        reward_drop=None,
    )
    assert alarms.conditions([CALM, CALM], [now, now], off) == {}


DEAD = {**CALM, "dead_groups": 1.0}
STORY = [CALM, CALM, DEAD, DEAD, DEAD, CALM, CALM, DEAD, DEAD]


def test_a_limit_that_the_newest_rollout_meets_no_more_sounds_nothing():
    watch = alarms.AlarmWatch(alarms.AlarmConfig(window=2), None)
    assert watch.observe({**CALM, "truncated": 0.9}, step=1) == []
    assert watch.observe({**CALM, "truncated": 0.2}, step=2) == []  # 0.55 on average
    (sentence,) = watch.observe({**CALM, "truncated": 0.8}, step=3)
    assert "50% of the completions are cut off" in sentence


def test_an_alarm_does_not_sound_anew_for_one_better_rollout():
    watch = alarms.AlarmWatch(alarms.AlarmConfig(window=2), None)
    shares = [0.9, 0.9, 0.4, 0.9]
    sounded = [watch.observe({**CALM, "truncated": x}, step=i) for i, x in enumerate(shares)]
    assert list(map(bool, sounded)) == [False, True, False, False]


def test_an_alarm_sounds_once_and_again_when_it_comes_back(tmp_path):
    watch = alarms.AlarmWatch(CONFIG, tmp_path)
    sounded = [bool(watch.observe(row, step=i)) for i, row in enumerate(STORY)]
    assert [i for i, one in enumerate(sounded) if one] == [3, 8]
    rows = json_lines.read(tmp_path / "alarms.jsonl")
    assert [(row["step"], row["alarm"]) for row in rows] == [(3, "dead_groups"), (8, "dead_groups")]
    assert "100% of the groups" in rows[0]["message"]


def test_a_function_that_fails_for_a_whole_rollout_is_told_of_at_once(tmp_path):
    failed = {"reward_failed/form": 1.0, "reward_failed/right": 0.9}
    watch = alarms.AlarmWatch(alarms.AlarmConfig(), tmp_path)
    (sentence,) = watch.observe({**CALM, **failed}, step=1)
    assert sentence.startswith("form failed for 100% of the completions")
    assert watch.observe({**CALM, **failed}, step=2) == []
    (other,) = watch.observe({**CALM, "reward_failed/right": 1.0}, step=3)
    assert other.startswith("right failed")
    assert watch.observe(CALM, step=4) == []
    assert len(watch.observe({**CALM, **failed}, step=5)) == 1  # it has come back
    rows = json_lines.read(tmp_path / "alarms.jsonl")
    assert [row["alarm"] for row in rows] == [
        f"reward_failed/{n}" for n in ("form", "right", "form")
    ]
    resumed = alarms.AlarmWatch(alarms.AlarmConfig(), None)
    resumed.resume([{**CALM, **failed}], step=1)
    assert resumed.observe({**CALM, **failed}, step=2) == []


def test_the_share_that_fails_may_be_set_or_ignored():
    failed = {**CALM, "reward_failed/form": 0.5}
    for limit, expected in ((0.5, 1), (0.6, 0), (None, 0)):
        watch = alarms.AlarmWatch(alarms.AlarmConfig(reward_failed=limit), None)
        assert len(watch.observe(failed, step=1)) == expected


@pytest.mark.parametrize("stop", range(1, len(STORY)))
def test_a_resumed_watch_sounds_like_one_that_never_stopped(tmp_path, stop):
    whole = alarms.AlarmWatch(CONFIG, tmp_path / "whole")
    part = alarms.AlarmWatch(CONFIG, tmp_path / "part")
    for i, row in enumerate(STORY):
        whole.observe(row, step=i)
    for i, row in enumerate(STORY[: stop + 1]):  # the last one is behind the checkpoint
        part.observe(row, step=i)
    resumed = alarms.AlarmWatch(CONFIG, tmp_path / "part")
    resumed.resume(STORY[:stop], step=stop - 1)
    for i, row in enumerate(STORY[stop:], start=stop):
        resumed.observe(row, step=i)
    read = [json_lines.read(tmp_path / name / "alarms.jsonl") for name in ("whole", "part")]
    assert read[0] == read[1]


def test_limits_out_of_range_are_refused():
    with pytest.raises(config_lib.ConfigError, match="is a share"):
        alarms.AlarmConfig(dead_groups=1.5)
    with pytest.raises(config_lib.ConfigError, match="above 1"):
        alarms.AlarmConfig(length_factor=1.0)
