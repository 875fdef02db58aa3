"""Figures by the worker's rules."""

import numpy as np
import pytest

from trainer import evaluate
from worker.model.labels import RISKED


def test_the_most_dangerous_frame_decides_an_animation() -> None:
    """Two pictures, the first with three frames: the frame with the highest p(risked) speaks for it."""
    logits = np.log(np.array([[0.9, 0.05, 0.05], [0.3, 0.2, 0.5], [0.8, 0.1, 0.1], [0.1, 0.8, 0.1]], np.float32))
    probabilities = evaluate.decisive(logits, np.array([0, 0, 0, 1]), temperature=1.0)
    np.testing.assert_allclose(probabilities, [[0.3, 0.2, 0.5], [0.1, 0.8, 0.1]], rtol=1e-5)


def test_a_temperature_above_one_makes_probabilities_milder() -> None:
    logits = np.array([[2.0, 0.0, 0.0]], np.float32)
    assert evaluate.softmax(logits, 2.0)[0, 0] < evaluate.softmax(logits, 1.0)[0, 0]


def test_the_label_is_risked_from_the_ban_threshold_on_else_the_likeliest() -> None:
    probabilities = np.array([[0.5, 0.1, 0.4], [0.61, 0.0, 0.39], [0.2, 0.3, 0.5]])
    assert evaluate.decided(probabilities, 0.4).tolist() == [RISKED, 0, RISKED]
    assert evaluate.decided(probabilities, None).tolist() == [0, 0, RISKED]


def test_figures_of_a_small_set_are_the_ones_counted_by_hand() -> None:
    probabilities = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.2, 0.7], [0.1, 0.35, 0.55], [0.5, 0.2, 0.3]])
    figures = evaluate.count(probabilities, np.array([0, 1, 2, 1, 2]), 0.6, 0.25)
    assert figures["accuracy"] == pytest.approx(0.6)
    assert figures["confusion"] == [[1, 0, 0], [0, 1, 1], [1, 0, 1]]
    assert figures["labels"]["risked"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "pictures": 2}
    assert (figures["bans"], figures["false_bans"], figures["reviews"]) == (1, 0, 2)
    assert figures["log_loss"] == pytest.approx(-np.log([0.8, 0.8, 0.7, 0.35, 0.3]).mean(), rel=1e-5)


def test_a_low_ban_threshold_set_by_hand_shows_in_the_accuracy() -> None:
    figures = evaluate.count(np.array([[0.6, 0.1, 0.3]]), np.array([0]), 0.2, None)
    assert (figures["accuracy"], figures["accuracy_likeliest"], figures["false_bans"]) == (0.0, 1.0, 1)
