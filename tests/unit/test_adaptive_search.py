"""What a sampler proposes: the knowledge gradient against brute force, studies from runs, and when to stop."""

import math

import numpy as np
import optuna
import pytest
from hand_made import hand_made_plan, hand_made_records, hand_made_table, planted_score

from analysis.config import AnalysisConfig
from analysis.search.adaptive import NUM_DRAWS, PLAUSIBLE, believe, propose
from analysis.search.answers import answer
from analysis.search.knowledge import after_run, batch, knowledge_gradient
from analysis.search.next_runs import next_lines, next_runs, next_section
from analysis.search.questions import Question, Told, chosen_metrics, question_from_dict
from analysis.search.sampler import KnowledgeGradientSampler
from analysis.search.scales import scale_of
from analysis.search.space import angle_of, space_of
from analysis.search.studies import make_study, with_guessed_ends
from analysis.study import make_studies
from analysis.table import AnalysisError, make_table
from sweep.search_config import Range
from train.metrics import metric

ANSWERS, NLL = metric("validation_exact_answer"), metric("validation_response_nll")
RAYS = tuple(
    sorted(
        {
            (p / max(p, r), r / max(p, r))
            for p in (0, 0.25, 0.5, 0.75, 1)
            for r in (0, 0.25, 0.5, 0.75, 1)
            if p + r
        },
        key=angle_of,
    )
)


def told(weights, score, seed=0, **settings):
    return Told(
        weights=weights, seed=seed, metrics={ANSWERS.name: score, NLL.name: 2 - score}, settings=settings
    )


def hill(weights, at=0.3):
    """A share of exact answers with its best angle at `at` quarter turns."""
    return 0.5 - 0.4 * (angle_of(weights) - at) ** 2


def question(runs, **changes):
    values = {"plane": "toy", "kind": "adaptive", "candidates": RAYS, "told": tuple(runs)}
    return Question(**{**values, **changes})


def noisy(runs, seed=0, deviation=0.01):
    generator = np.random.default_rng(seed)
    return [
        told(weights, hill(weights) + deviation * generator.standard_normal(), repeat)
        for repeat, weights in runs
    ]


PILOT = [(0, RAYS[index]) for index in (0, 3, 6, 9, 12)]


def test_the_gradient_equals_brute_force():
    """Simulated: add a run at a candidate, condition, and see how much the best mean rises."""
    generator = np.random.default_rng(0)
    root = generator.standard_normal((6, 6))
    covariance, mean, noise = root @ root.T, generator.standard_normal(6), 0.7
    found = knowledge_gradient(mean, covariance, noise)
    for index in range(6):
        scores = mean[index] + np.sqrt(covariance[index, index] + noise) * generator.standard_normal(200_000)
        gain = covariance[:, index] / (covariance[index, index] + noise)
        best = (mean[:, None] + gain[:, None] * (scores - mean[index])).max(axis=0)
        slope = np.abs(covariance[:, index]).max() / np.sqrt(covariance[index, index] + noise)
        assert found[index] == pytest.approx(best.mean() - mean.max(), abs=0.012 * slope + 0.005)
    assert (found >= 0).all()


def test_a_pending_run_is_as_good_as_its_expectation():
    generator = np.random.default_rng(1)
    root = generator.standard_normal((5, 5))
    covariance = root @ root.T
    left = after_run(covariance, 2, 0.5)
    assert left[2, 2] == pytest.approx(1 / (1 / covariance[2, 2] + 1 / 0.5))
    chosen = batch(np.zeros(5), covariance, 0.5, [], 3)
    first = [index for index, _ in chosen]
    assert [index for index, _ in batch(np.zeros(5), covariance, 0.5, first[:2], 1)] == first[2:]


def test_where_nothing_is_known_it_goes_and_where_all_is_known_it_stays_away():
    belief = believe(RAYS, noisy([*PILOT, *((repeat, RAYS[0]) for repeat in range(1, 8))]), [ANSWERS], 0)
    chosen = [weights for weights, _ in propose(belief, [], 4, 12)]
    assert RAYS[0] not in chosen
    assert all(worth >= 0 for _, worth in propose(belief, [], 4, 12))


def test_the_answer_is_the_same_whenever_it_is_asked():
    asked = question(noisy(PILOT), wanted=3)
    assert answer(asked) == answer(asked)
    for kind in ("tpe", "adaptive"):
        first = answer(question(noisy(PILOT), kind=kind, wanted=1))
        assert answer(question(noisy(PILOT), kind=kind, wanted=1)) == first


@pytest.mark.parametrize("kind", ["adaptive", "tpe", "gp"])
def test_every_sampler_proposes_candidates(kind):
    runs = noisy([*PILOT, (0, RAYS[4])])
    found = answer(question(runs, kind=kind, wanted=2, epsilon=1e-4, pending=(Told(weights=RAYS[1]),)))
    assert len(found["proposals"]) == 2
    assert all(tuple(one["weights"]) in RAYS for one in found["proposals"])
    assert found["metrics"] == [ANSWERS.name]
    worth = [one["expected"] for one in found["proposals"]]
    assert all(value >= 0 for value in worth) if kind == "adaptive" else worth == [None, None]


def test_a_free_ratio_is_searched_between_the_grids_cells():
    free = (Range(axis="ratio", low=0.0, high=0.5),)
    runs = noisy([(0, (0.0, 1.0)), (0, (0.5, 1.0)), (0, (0.25, 1.0)), (0, (0.1, 1.0)), (0, (0.4, 1.0))])
    for kind in ("adaptive", "tpe"):
        found = answer(question(runs, kind=kind, ranges=free, wanted=6, epsilon=1e-4))
        ratios = [one["weights"][0] / one["weights"][1] for one in found["proposals"]]
        assert all(0 <= ratio <= 0.5 for ratio in ratios)
        assert any(ratio not in (0, 0.25, 0.5) for ratio in ratios)


def test_another_axis_stays_in_its_range():
    axes = (
        Range(axis="train.learning_rate", low=1e-4, high=1e-2),
        Range(axis="train.batch_size", low=4, high=16, is_whole=True),
    )
    settings = {"train.learning_rate": 1e-3, "train.batch_size": 8}
    runs = [
        Told(weights=weights, metrics={ANSWERS.name: hill(weights)}, settings=settings)
        for _, weights in PILOT
    ]
    found = answer(question(runs, kind="tpe", ranges=axes, wanted=5))
    for one in found["proposals"]:
        assert 1e-4 <= one["settings"]["train.learning_rate"] <= 1e-2
        assert one["settings"]["train.batch_size"] in range(4, 17)
    assert not found["is_known"], "the surface of the weights says nothing of other axes"


def test_it_stops_when_the_region_is_known_and_not_before():
    few = answer(question(noisy(PILOT, deviation=0.03), epsilon=0.005))
    assert not few["is_known"]
    runs = noisy([(repeat, weights) for repeat in range(6) for weights in RAYS], deviation=0.003)
    known = answer(question(runs, epsilon=0.02))
    assert known["is_known"]
    assert known["proposals"] == []
    assert "loses at most 0.02 of exact answers (validation) with probability" in known["why"]
    assert not answer(question(runs[:3], epsilon=0.5))["is_known"], "not before the pilot design is there"


def test_a_region_is_as_sure_as_the_least_sure_of_the_surfaces_that_are_still_plausible():
    belief = believe(RAYS, noisy([*PILOT, (1, RAYS[3]), (1, RAYS[6])], deviation=0.02), [ANSWERS], 0)
    (posterior,) = belief.posteriors
    draws_KC, model_K = belief.draws(1.0), posterior.models_of_draws(NUM_DRAWS)
    found = belief.optimum(1.0, 2.0)
    is_near_K = draws_KC.max(axis=1) - draws_KC[:, found.best] <= 2.0
    of_models = [
        is_near_K[model_K == model].mean()
        for model, weight in posterior.model_weights.items()
        if weight >= PLAUSIBLE
    ]
    assert len(of_models) > 1
    assert found.sure == min(of_models) < is_near_K.mean()


def test_two_metrics_are_a_trade_off():
    def both(weights, repeat):
        scores = {ANSWERS.name: hill(weights, 0.1), "validation_constraint_adherence": hill(weights, 0.9)}
        return Told(weights=weights, seed=repeat, metrics=scores)

    names = (ANSWERS.name, "validation_constraint_adherence")
    runs = [both(weights, repeat) for repeat, weights in PILOT]
    for kind in ("adaptive", "tpe"):
        found = answer(question(runs, kind=kind, metrics=names, wanted=4, epsilon=0.0001))
        assert found["metrics"] == list(names)
        assert len(found["proposals"]) == 4
    angles = [
        angle_of(tuple(one["weights"]))
        for one in answer(question(runs, metrics=names, wanted=6))["proposals"]
    ]
    assert min(angles) < 0.5 < max(angles), "both ends of the trade-off are looked at"


def test_the_sampler_serves_any_optuna_study():
    sampler = KnowledgeGradientSampler(RAYS, [ANSWERS])
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    parameters = {
        "prompt_weight": optuna.distributions.FloatDistribution(0, 1),
        "response_weight": optuna.distributions.FloatDistribution(0, 1),
    }
    generator = np.random.default_rng(0)
    for _ in range(14):
        trial = study.ask(parameters)
        weights = (trial.params["prompt_weight"], trial.params["response_weight"])
        at = weights if max(weights) == 1 else (0.5, 0.5)
        study.tell(trial, hill(at) + 0.005 * generator.standard_normal())
    tried = [tuple(one.params.values()) for one in study.trials[1:]]
    assert set(tried) <= set(RAYS)
    assert 0.2 <= np.median([angle_of(weights) for weights in tried[-6:]]) <= 0.4, "it is at the hill"


def test_runs_become_trials():
    space = space_of(question([]))
    study = make_study(space, [ANSWERS], noisy(PILOT), [Told(weights=RAYS[1])], None)
    states = [trial.state.name for trial in study.trials]
    assert states.count("COMPLETE") == 5
    assert states.count("RUNNING") == 1
    assert study.best_trial.params["angle"] in [angle_of(weights) for _, weights in PILOT]
    outside = Told(weights=(1.0, 1.0), metrics={ANSWERS.name: 0.9})
    free = space_of(question([], ranges=(Range(axis="ratio", low=0.0, high=0.5),)))
    assert len(make_study(free, [ANSWERS], [outside], [], None).trials) == 0


def test_scale_matters_where_it_does():
    pairs = ((0.0, 1.0), (0.25, 0.25), (0.5, 0.5), (1.0, 1.0), (1.0, 0.0))
    runs = [told(weights, 0.5) for weights in pairs]
    found = answer(question(runs, kind="tpe", candidates=pairs, wanted=2))
    assert all(tuple(one["weights"]) in pairs for one in found["proposals"])
    assert set(space_of(question([], candidates=pairs)).parameters()) == {"prompt_weight", "response_weight"}


def test_a_paused_run_is_told_as_its_probable_end():
    def measured(weights, rung, end=None):
        metrics = {} if end is None else {ANSWERS.name: end}
        return Told(weights=weights, metrics=metrics, rungs={0.5: {ANSWERS.name: rung}})

    full = [measured(RAYS[index], 0.2 + 0.01 * index, 0.3 + 0.01 * index) for index in range(3)]
    paused = measured(RAYS[5], 0.1)
    ends = with_guessed_ends([*full, paused], [ANSWERS])
    assert ends[-1].metrics[ANSWERS.name] == pytest.approx(0.2)
    assert len(with_guessed_ends([*full[:2], paused], [ANSWERS])) == 2, (
        "two runs don't say how much is to come"
    )


def test_likelihoods_are_stretched_and_turned():
    scale = scale_of(NLL, [1.0, 1.2, 1.4])
    assert scale.points(1.0) > scale.points(1.2)
    assert scale.difference(scale_of(ANSWERS, [0.5]).points(0.01)) > 0
    assert scale_of(ANSWERS, [0.1, 0.2]).points(0.25) == 25
    assert scale_of(NLL, [1.0]).points(1.0) == -1.0


def test_metrics_that_cant_choose_are_refused():
    runs = noisy(PILOT)
    assert chosen_metrics((), runs) == (ANSWERS,)
    for name, why in (("test_exact_answer", "can't choose"), ("validation_mmlu.accuracy", "is on no run")):
        with pytest.raises(AnalysisError, match=why):
            chosen_metrics((name,), runs)
    with pytest.raises(AnalysisError, match="no validation metric"):
        chosen_metrics((), [Told(weights=RAYS[0], metrics={"test_exact_answer": 0.1})])


def test_a_question_survives_json():
    search = {"kind": "gp", "metrics": [], "epsilon": None, "confidence": 0.9, "pilot_runs": 5, "seed": 3}
    ranges = [{"axis": "ratio", "low": 0.0, "high": None, "is_whole": False, "is_log": False}]
    values = {
        "plane": ["m", "d", {}],
        "search": {**search, "ranges": ranges},
        "candidates": [[0.0, 1.0]],
        "told": [{"weights": [0.0, 1.0], "settings": {}, "seed": 1, "rungs": {"0.5": {ANSWERS.name: 0.1}}}],
        "pending": [],
        "wanted": 2,
    }
    read = question_from_dict(values)
    assert read.told[0].rungs == {0.5: {ANSWERS.name: 0.1}}
    assert read.ranges[0].high == math.inf


def half_finished():
    plan = hand_made_plan()
    records = hand_made_records(plan, planted_score(noise=0.03, best_angle=0.245))
    kept = {key: record for key, record in records.items() if record.run_id.endswith("s0")}
    return make_table(plan, kept, {})


def test_a_half_finished_sweep_says_what_its_next_runs_should_be():
    table = half_finished()
    (study,) = make_studies(table, AnalysisConfig())
    found = next_runs(table, study)
    assert found == next_runs(table, study), "the same input gives the same advice"
    assert len(found) == 10
    assert all(one.worth >= 0 for one in found)
    assert found[0].worth > 1e-5
    planned = {spec.run_id for spec in table.plan.runs}
    assert all(one.run_id in planned for one in found if one.run_id)
    assert found[0].seed == 1, "the first seed that the plan still lacks"
    assert len({(one.weights, one.seed) for one in found}) == 10, "no run twice"
    near = [math.degrees(math.atan2(*one.weights)) for one in found]
    assert np.median(near) < 30, "around the planted best at 14 degrees"
    lines = next_lines(table, [study])
    assert "the next 10 runs that teach most" in " ".join(lines.split())
    page = str(next_section(table, [study]))
    assert "What to run next" in page
    assert page.count("<tr>") == 11


def test_a_finished_sweep_and_one_with_a_single_run_need_no_advice():
    table = hand_made_table()
    (study,) = make_studies(table, AnalysisConfig())
    assert next_runs(table, study) == ()
    assert next_lines(table, [study]) == ""
    assert str(next_section(table, [study])) == ""
    plan = hand_made_plan()
    records = hand_made_records(plan, planted_score())
    first = next(key for key, record in records.items() if record.stage != "base")
    table = make_table(plan, {first: records[first]}, {})
    (study,) = make_studies(table, AnalysisConfig())
    assert next_runs(table, study) == ()
