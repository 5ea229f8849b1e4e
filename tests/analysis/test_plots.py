"""The picture of a leaderboard is a picture, whatever is on the board."""

from __future__ import annotations

import io
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from numpy.typing import NDArray

from dspex_pipelines.analysis.leaderboard import leaderboard
from dspex_pipelines.analysis.plots import leaderboard_png
from tests.analysis.test_leaderboard import frame, trial

BOUNDS_GREY = np.array([0xC9, 0xC9, 0xC9]) / 255


def draw(scores: dict[str, list[float | None]]) -> NDArray[np.float64]:
    rows = [
        trial(name, score, example_id=str(number), group=str(number))
        for name, given in scores.items()
        for number, score in enumerate(given)
    ]
    return picture_of(rows)


def picture_of(rows: list[dict[str, Any]]) -> NDArray[np.float64]:
    picture = leaderboard_png(leaderboard(frame(rows)))
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    return matplotlib.image.imread(io.BytesIO(picture), format="png")


def grey(picture: NDArray[np.float64]) -> int:
    """How many pixels have the colour of the bounds that trials without a score leave."""
    return int(np.isclose(picture[:, :, :3], BOUNDS_GREY, atol=0.004).all(axis=2).sum())


@pytest.mark.parametrize(
    "scores",
    [
        {"a": [1.0, 0.5], "b": [0.25, 0.0]},
        {"a": [1.0]},
        {"a": [None, None], "b": [None, None]},
        {"a": [1.0, None], "b": [None, None]},
        {"$a_b^$": [1.0], "\\frac": [0.5]},
    ],
    ids=["two", "one", "all-failed", "some-failed", "names-that-look-like-formulas"],
)
def test_every_board_has_a_picture(scores: dict[str, list[float | None]]) -> None:
    picture = draw(scores)
    assert picture.shape[1] == 900
    assert picture[:, :, :3].std() > 0


def test_the_picture_shows_bounds_only_where_something_failed() -> None:
    fine = draw({"a": [1.0, 0.5], "b": [0.25, 0.0]})
    failed = draw({"a": [1.0, 0.5], "b": [0.25, None]})
    assert grey(failed) > grey(fine) + 100


def test_the_picture_shows_the_bounds_that_trials_leave_which_were_not_run() -> None:
    rows = [trial("a", 1.0), trial("a", 0.5, example_id="e2")]
    cut = trial("a", None, example_id="e3", error_type="budget_exhausted")
    assert grey(picture_of([*rows, cut])) > grey(picture_of(rows)) + 100


def test_the_picture_grows_with_the_board_up_to_its_top() -> None:
    heights = [draw({f"c{number}": [number / 99] for number in range(count)}).shape[0] for count in (2, 20, 60)]
    assert heights[0] < heights[1] == heights[2]


@pytest.mark.parametrize("label", ["short", "a label of some length " * 2, "W" * 40])
def test_labels_have_as_much_room_as_they_need(label: str) -> None:
    dark = (draw({label: [1.0], "b": [0.5]})[:, :, :3] < 0.9).all(axis=2)
    assert not dark[:, 0].any(), "nothing is cut"
    assert int(dark.any(axis=0).argmax()) < 40


@pytest.mark.parametrize(
    ("values", "lines"),
    [(["some words"] * 6, 2), (["W" * 40, *["i" * 40] * 4], 3), (["W" * 40] * 3, 3), (["some words"] * 40, 3)],
    ids=["two-lines", "of-wide-and-narrow-letters", "three-lines", "too-many-for-three"],
)
def test_labels_that_need_more_are_folded_and_the_intervals_keep_their_room(values: list[str], lines: int) -> None:
    trials = frame([trial("a", 1.0), trial("b", 0.5)])
    for number, value in enumerate(values):
        trials[f"var.variable_{number}"] = [value, "other"]
    picture = matplotlib.image.imread(io.BytesIO(leaderboard_png(leaderboard(trials))), format="png")
    dark = (picture[:, :, :3] < 0.9).all(axis=2)
    assert not dark[:, 0].any(), "nothing is cut"
    assert picture.shape[0] == 120 + 2 * (6 + 14 * lines)
    axis = dark.sum(axis=1).max()
    assert axis > 0.35 * picture.shape[1]


def test_a_metric_may_have_any_name() -> None:
    name = "a$\\x{$b"
    rows = [trial(configuration, 0.5) for configuration in "ab"]
    board = leaderboard(frame(rows).rename(columns={"score.good": f"score.{name}"}))
    assert board.metric == name
    assert leaderboard_png(board).startswith(b"\x89PNG")
