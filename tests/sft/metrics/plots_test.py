"""The picture of a run."""

import numpy as np
import pytest

from tunix.sft.metrics import plots


def test_smoothing_averages_over_a_centred_window_that_shrinks_at_the_ends():
    np.testing.assert_allclose(
        plots.smoothed([0.0, 3.0, 6.0, 0.0, 1.0], window=3), [0.0, 3.0, 3.0, 7 / 3, 1.0]
    )


def test_a_window_of_one_leaves_the_values():
    np.testing.assert_array_equal(plots.smoothed([1.0, 5.0], window=1), [1.0, 5.0])


def test_values_that_are_not_finite_do_not_count():
    np.testing.assert_allclose(plots.smoothed([1.0, np.nan, 3.0], window=3), [1.0, 2.0, 3.0])
    assert np.isnan(plots.smoothed([np.nan], window=3)).all()


def test_the_file_is_a_png(tmp_path):
    path = tmp_path / "reward.png"
    rng = np.random.default_rng(0)
    steps = list(range(1, 51))
    curves = {
        "sampled reward": (
            steps,
            np.clip(0.1 + np.arange(50) / 60 + rng.normal(0, 0.08, 50), 0, 1),
        ),
        "greedy": (steps[::10], [0.03, 0.4, 0.7, 0.9, 0.95]),
    }
    plots.save_curves(path, curves, title="Reward on unseen pairs", ylabel="reward")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_nothing_to_draw_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="nothing to plot"):
        plots.save_curves(tmp_path / "x.png", {"loss": ([], [])}, title="", ylabel="")


@pytest.mark.parametrize("title", ["GRPO on a$b$", r"$\\foo$", "$", "50 % [x] _{y}"])
def test_a_title_is_text_and_no_formula(tmp_path, title):
    plots.save_curves(tmp_path / "plot.png", {"a": ([1], [1.0])}, title=title, ylabel="y")
    assert (tmp_path / "plot.png").stat().st_size > 0
