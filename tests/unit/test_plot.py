"""Figures: deterministic bytes, two silences that look different, colours that point the right way."""

import functools
import math

import numpy as np
import pytest
from hand_made import hand_made_plan, hand_made_table, planted_score
from matplotlib.collections import LineCollection, PolyCollection

from analysis import curve, landscape_plot, plot
from analysis.config import AnalysisConfig
from analysis.draw import colour_limits, colours_for, ink_on, png_bytes
from analysis.study import make_studies


@functools.cache
def plain():
    """The study of the plain hand-made sweep, which many figures are drawn of."""
    return make_studies(hand_made_table(), AnalysisConfig())[0]


def study_of(table, metric=None):
    return make_studies(table, AnalysisConfig(metric=metric))[0]


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts if text.get_text()]


def squares(figure):
    """Coloured and hatched cells of the first axes."""
    coloured, hatched = [found for found in figure.axes[0].collections if isinstance(found, PolyCollection)]
    return len(coloured.get_paths()), len(hatched.get_paths())


def test_the_same_study_gives_the_same_bytes():
    study = plain()
    for make in (
        lambda: plot.plane_figure(study, study.chosen),
        lambda: curve.ratio_figure(study),
        lambda: plot.difference_figure(study, study.chosen),
        lambda: plot.metrics_figure(study),
        lambda: landscape_plot.noise_figure(study),
        lambda: landscape_plot.near_best_figure(study),
        lambda: landscape_plot.gain_figure(study),
    ):
        first, second = png_bytes(make()), png_bytes(make())
        assert first == second
        assert first.startswith(b"\x89PNG")
        assert len(first) < 80_000


def test_absent_cells_are_hatched_and_never_asked_ones_blank():
    study = plain()
    assert squares(plot.plane_figure(study, study.chosen)) == (24, 0)
    table = hand_made_table(drop=tuple(f"p1-r0.75-s{seed}" for seed in range(3)))
    study = study_of(table)
    assert squares(plot.plane_figure(study, study.chosen)) == (23, 1)


def test_absent_numbers_are_not_printed_as_zero():
    table = hand_made_table(
        score=lambda *_: {"validation_exact_answer": 0.5},
        drop=tuple(f"p1-r0.75-s{seed}" for seed in range(3)),
    )
    figure = plot.plane_figure(study := study_of(table), study.chosen)
    assert not [text for text in texts(figure) if text.startswith("0.000") or "nan" in text]


def test_the_title_says_unit_and_direction():
    study = study_of(hand_made_table(), "validation_response_nll")
    title = plot.plane_figure(study, study.chosen).axes[0].get_title(loc="left")
    assert "nats/token" in title
    assert "lower is better" in title


def test_conventions_best_and_base_are_marked():
    found = texts(plot.plane_figure(study := plain(), study.chosen))
    assert {"IT", "IM"} <= set(found)
    assert any(text.startswith("base\n") for text in found)


def test_one_seed_has_an_outline_and_no_error():
    study = study_of(hand_made_table(hand_made_plan(seeds=(0,))))
    figure = plot.plane_figure(study, study.chosen)
    assert [found for found in figure.axes[0].collections if isinstance(found, LineCollection)]
    assert not [text for text in texts(figure) if "±" in text]


def test_bright_is_better_whichever_way_better_lies():
    for better, best in (("higher", 1.0), ("lower", 0.0)):
        red, green, blue, _ = colours_for(better)(best)
        assert red + green + blue > 1.5


def test_a_disaster_does_not_flatten_all_other_colours():
    low, high, cut = colour_limits([0.6, 0.61, 0.62, 0.58, 0.0], "higher")
    assert cut == "min"
    assert high == 0.62
    assert low > 0.5
    assert colour_limits([1.0, 1.1, 1.2, 9.0], "lower")[2] == "max"
    assert colour_limits([0.5, 0.5], "higher")[0] < 0.5 < colour_limits([0.5, 0.5], "higher")[1]
    assert colour_limits([math.nan], "higher") == (0.0, 1.0, "neither")


def test_text_is_readable_on_every_colour():
    for position in np.linspace(0, 1, 11):
        colour = colours_for("higher")(float(position))
        light = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
        assert (ink_on(colour) == "#ffffff") == (light <= 0.45)


def test_differences_within_two_standard_errors_are_bracketed():
    score = planted_score(noise=0.05)
    study = study_of(hand_made_table(score=score))
    figure = plot.difference_figure(study, study.chosen)
    assert figure is not None
    found = texts(figure)
    assert any(text.startswith("(") for text in found)
    assert any(text.startswith("0\nby definition") for text in found)


def test_without_instruction_tuning_there_is_no_difference_figure():
    plan = hand_made_plan(pairs=[(0.5, 1.0), (1.0, 1.0)])
    study = study_of(hand_made_table(plan))
    assert plot.difference_figure(study, study.chosen) is None


def test_the_ratio_curve_has_one_point_for_each_distinct_run():
    study = plain()
    axes = curve.ratio_figure(study).axes[0]
    assert [len(container[0].get_xdata()) for container in axes.containers] == [13, 13]


@pytest.mark.parametrize("weights", [(0.0, 1.0), tuple(index / 14 for index in range(15))])
def test_tiny_and_large_planes_fit(weights):
    study = study_of(hand_made_table(hand_made_plan(weights, seeds=(0, 1))))
    png_bytes(plot.plane_figure(study, study.chosen))
    png_bytes(curve.ratio_figure(study))


def test_a_single_column_of_cells_is_a_plane_too():
    plan = hand_made_plan(pairs=[(weight, 1.0) for weight in (0.0, 0.1, 0.5)])
    study = study_of(hand_made_table(plan))
    for figure in (plot.plane_figure(study, study.chosen), plot.difference_figure(study, study.chosen)):
        assert figure is not None
        png_bytes(figure)


def test_the_map_is_wedges_where_rays_are_pooled_and_squares_where_they_are_not():
    pooled, apart = plain(), study_of(hand_made_table(hand_made_plan(seeds=(0,), aliases=False)))
    assert pooled.region.landscape.on_edge
    assert not apart.region.landscape.on_edge
    for study in (pooled, apart):
        figure = landscape_plot.near_best_figure(study)
        patches = next(found for found in figure.axes[0].collections if isinstance(found, PolyCollection))
        landscape = study.region.landscape
        assert len(patches.get_paths()) == landscape.prompt_Q.size
        touching = [path.vertices.min() < 1e-9 for path in patches.get_paths()]
        assert all(touching) == landscape.on_edge


def test_without_the_convention_there_is_no_gain_figure_and_still_a_map():
    study = study_of(hand_made_table(hand_made_plan(pairs=[(0.5, 1.0), (0.7, 1.0), (1.0, 1.0)], seeds=(0,))))
    assert landscape_plot.gain_figure(study) is None
    assert landscape_plot.near_best_figure(study) is not None
    assert study.region.recommended == study.region.best


def test_one_cell_beside_its_base_model_has_room_to_be_drawn_in():
    """The base model's words stay within the few angles there are; matplotlib warned, and gave up its layout."""
    seen = {(0, 0): 0.3, (0, 1): 0.2}

    def score(p, r, seed):
        return {f"{split}_exact_answer": seen[p, r] + 0.1 * seed for split in ("validation", "test")}

    study = study_of(hand_made_table(hand_made_plan(pairs=[(0, 1)]), score))
    figure = curve.ratio_figure(study)
    assert "base model" in texts(figure)
    png_bytes(figure)
    assert figure.axes[0].get_position().height > 0.6


def test_all_metrics_share_one_pair_of_axes():
    """A pair for each took a second of a report of fifty planes."""
    figure = plot.metrics_figure(plain())
    drawn = [found for found in figure.axes[0].collections if isinstance(found, PolyCollection)]
    assert len(figure.axes) == 1
    assert [len(found.get_paths()) for found in drawn] == [24, 0] * 8  # coloured, hatched
    words = texts(figure)
    assert words[0] == "exact answers\n(validation)"
    assert words[1].endswith("bright: higher, better")
    assert len(words) == 16
