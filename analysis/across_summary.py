"""The part of region.json about several planes. Strict JSON; what doesn't exist is an absent key. Pure.

across
  finding, not_said              sentences
  recommended                    {prompt_weight, response_weight}: one pair for all of these planes
  gain_on_these_planes, gain_on_a_new_plane    {mean, low, high, probability_positive}, points; exploratory
  region                         [[prompt weight, response weight]]: P(within epsilon of the mean's best) >= 1/2
  shares, share_intervals        of a surface's variance: common, model, dataset, interaction
  left_out                       [{factor, level, choice, gain, standard_error, num_planes, num_positive}]
"""

from typing import Any

from analysis.across import Across
from analysis.across_sections import across_finding
from analysis.optimum import Difference


def across_summary(across: Across) -> dict[str, Any]:
    """The part of region.json about several planes; what doesn't exist is an absent key."""
    found: dict[str, Any] = {"finding": across_finding(across), "not_said": list(across.silences)}
    if across.recommended is not None:
        found["recommended"] = dict(
            zip(("prompt_weight", "response_weight"), across.recommended, strict=True)
        )
    if across.common_gain is not None and across.new_gain is not None:
        found["gain_on_these_planes"] = difference_values(across.common_gain)
        found["gain_on_a_new_plane"] = difference_values(across.new_gain)
    if across.common is not None:
        members = across.places_Q2[across.common.median_Q]
        found["region"] = [[float(weight) for weight in place] for place in members]
    if across.pooled is not None:
        found["shares"] = dict(across.pooled.shares)
        found["share_intervals"] = {name: list(ends) for name, ends in across.pooled.share_intervals.items()}
        found["effective_sample_size"] = across.pooled.effective_sample_size
    found["left_out"] = [
        {
            "factor": one.factor,
            "level": one.level,
            "choice": list(one.choice),
            "gain": one.gain.mean,
            "standard_error": one.gain.standard_error,
            "num_planes": one.num_planes,
            "num_positive": one.num_positive,
        }
        for one in across.left_out
    ]
    return found


def difference_values(found: Difference) -> dict[str, float]:
    """95 % interval and P(> 0)."""
    return {"mean": found.mean, "low": found.low, "high": found.high, "probability_positive": found.positive}
