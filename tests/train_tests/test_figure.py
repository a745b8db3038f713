"""The picture holds every point in its colour, whatever the goal, and is drawn without a display."""

import numpy as np
import pytest
from matplotlib.image import imread
from result_specimens import found

from train.reports import figure, plane


@pytest.fixture
def result():
    return found()


def test_figure_is_a_picture_of_the_points(result, tmp_path):
    figure.draw(result, tmp_path / "frontier.png")
    pixels = imread(tmp_path / "frontier.png")[..., :3]
    assert pixels.shape == (1140, 1800, 3)
    for colour in ("large", "small", "tuned", "speculative", "llamacpp", "random_low"):
        rgb = np.array([int(plane.COLOURS[colour][i : i + 2], 16) / 255 for i in (1, 3, 5)])
        assert (np.abs(pixels - rgb).max(-1) < 0.01).sum() > 200, colour
    assert [p.name for p in tmp_path.iterdir()] == ["frontier.png"]


@pytest.mark.parametrize("goal", [{}, {"quality_budget": 0.05}, {"target_speedup": 9.0}])
def test_figure_of_other_goals_and_signed_losses(result, goal, tmp_path):
    result["goal"] = goal
    result["methods"][5] |= {"loss": -0.01, "loss_interval": None}
    result["methods"][4] |= {"loss": 0.01, "loss_interval": [0.02, 0.03]}  # an interval beside its own point
    result["frontier"] = {"policy": [[1.1, 0.02]], "random": []}
    figure.draw(result, tmp_path / "frontier.png")
    assert (tmp_path / "frontier.png").stat().st_size > 20_000


def test_missing_keys_leave_a_picture(result, tmp_path):
    for partial in ({}, {key: result[key] for key in ("name", "methods")}):
        figure.draw(partial, tmp_path / "frontier.png")
        assert imread(tmp_path / "frontier.png").shape[:2] == (1140, 1800)


def test_the_frontier_alone_is_drawn(result, tmp_path):
    figure.draw({"frontier": result["frontier"]}, tmp_path / "new" / "frontier.png")
    assert (tmp_path / "new" / "frontier.png").stat().st_size > 20_000
