import numpy as np

from superdraft.evaluation.measures.bootstrap import Interval
from superdraft.evaluation.runs.tuning import Trial, ranked, search
from superdraft.ngram_models.store.manifest import Tuning

PAPER = Tuning(0.54, 0.06, 9)


def trial(setting, value, perplexity, num_prompts=1):
    found = {"words_right": Interval(value, value, value), "perplexity_mean": Interval(perplexity, 0, 0)}
    return Trial(setting, {"words_right": np.ones((num_prompts, 2))}, num_prompts, found)


def test_the_best_within_the_bound_comes_first():
    trials = [
        trial(Tuning(0.1, 1.0, 9), 0.9, 12.1),  # best, but reads too badly
        trial(Tuning(0.2, 1.0, 9), 0.5, 10.0),
        trial(Tuning(0.3, 1.0, 9), 0.7, 11.0),
        trial(Tuning(0.4, 1.0, 9), 0.7, 10.5),
        trial(Tuning(0.5, 1.0, 9), 0.1, float("nan")),
    ]
    assert [one.setting.alpha for one in ranked(trials, "words_right", 1.2)] == [0.4, 0.3, 0.2, 0.1, 0.5]


def test_halving_keeps_the_best_and_those_that_it_is_compared_with():
    settings = [PAPER, *(Tuning(alpha, tau, 9) for alpha in (0.0, 0.3, 0.6, 0.9) for tau in (0.1, 0.2, 0.3, 0.4))]
    rounds = []

    def measure(wanted, size):
        rounds.append((len(wanted), size))
        return [trial(one, one.alpha - one.tau if one != PAPER else -9.0, 5.0, size) for one in wanted]

    finalists, others = search(settings, 100, 20, measure, lambda trials: ranked(trials, "words_right", 1.1))
    assert rounds == [(17, 20), (8, 60), (6, 100)]
    assert finalists[0].setting == Tuning(0.9, 0.1, 9)
    assert {one.setting for one in finalists} >= {PAPER, Tuning(0.0, 0.1, 9)}
    assert all(one.num_prompts == 100 for one in finalists)
    assert len(finalists) + len(others) == len(settings)


def test_few_prompts_are_one_round():
    sizes = []

    def measure(wanted, size):
        sizes.append(size)
        return [trial(one, 0.1, 5.0) for one in wanted]

    finalists, others = search([PAPER, Tuning(0.0, 0.1, 9)], 7, 60, measure, list)
    assert sizes == [7]
    assert len(finalists) == 2
    assert others == []
