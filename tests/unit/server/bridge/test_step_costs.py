"""What the measured costs of steps say about the time of a request."""

import pytest

from superdraft.server.bridge.step_costs import FRESH_DECODES, StepCosts


def observe(costs, rows, seconds, times=100):
    for _ in range(times):
        costs.observe_decode(rows, seconds)


def test_before_the_first_step_a_cost_is_assumed():
    assert 0 < StepCosts().decode_s(5) < StepCosts().decode_s(50)


def test_rows_that_did_not_occur_yet_cost_at_most_their_share():
    costs = StepCosts()
    observe(costs, 4, 0.02)
    assert costs.decode_s(1) == pytest.approx(0.02)
    assert costs.decode_s(4) == pytest.approx(0.02)
    assert costs.decode_s(12) == pytest.approx(0.06)
    observe(costs, 12, 0.03)
    assert costs.decode_s(12) == pytest.approx(0.03)
    assert costs.decode_s(4) == pytest.approx(0.02)
    assert costs.decode_s(24) == pytest.approx(0.06)


def test_an_old_high_cost_does_not_keep_rows_out_for_ever():
    costs = StepCosts()
    observe(costs, 20, 1.0)
    observe(costs, 12, 0.03, times=FRESH_DECODES - 1)
    assert costs.decode_s(20) == pytest.approx(1.0)
    observe(costs, 12, 0.03)
    assert costs.decode_s(20) == pytest.approx(0.05)


def test_an_old_low_cost_is_still_that_of_few_rows():
    costs = StepCosts()
    observe(costs, 1, 0.01)
    observe(costs, 40, 0.1, times=10 * FRESH_DECODES)
    assert costs.decode_s(1) == pytest.approx(0.01)


def test_a_mean_follows_a_change():
    costs = StepCosts()
    observe(costs, 4, 0.01)
    observe(costs, 4, 0.03, times=200)
    assert costs.decode_s(4) == pytest.approx(0.03, rel=0.01)


def test_a_request_waits_for_prompts_and_shares_its_rounds_with_others():
    costs = StepCosts()
    for _ in range(500):  # two prompt steps per request, in every other round
        costs.observe_request()
        for is_last in (False, True):
            costs.observe_prefill(0.05, is_last, is_full=not is_last)
            observe(costs, 4, 0.02, times=2)
    assert costs.prefills_per_request == pytest.approx(2, rel=0.05)
    assert costs.num_rounds == 2000
    assert costs.pace(4).stay_s(3, 10) == pytest.approx(3 * 0.07 + 10 * 0.045, rel=0.05)
    assert costs.pace_alone(4).stay_s(2, 10) == pytest.approx(2 * 0.07 + 10 * 0.02)


def test_steps_that_took_all_who_waited_do_not_make_a_crowd_look_late():
    costs = StepCosts()
    for _ in range(500):  # each request came alone, so each had a step of its own
        costs.observe_request()
        costs.observe_prefill(0.05, 1, is_full=False)
    assert costs.prefills_per_request <= 0.5
    costs.observe_prefill(0.2, 40, is_full=False)
    assert costs.prefills_per_request <= 0.05
    for _ in range(500):
        costs.observe_prefill(0.05, 1, is_full=False)
    assert costs.prefills_per_request <= 0.05


def test_steps_that_left_some_waiting_show_how_many_a_step_takes():
    costs = StepCosts()
    for _ in range(100):
        costs.observe_prefill(0.2, 10, is_full=True)
    assert costs.prefills_per_request == pytest.approx(0.1, rel=0.01)
    for _ in range(100):  # long prompts, of which each takes three steps
        for num_completed in (0, 0, 1):
            costs.observe_prefill(0.2, num_completed, is_full=True)
    assert costs.prefills_per_request == pytest.approx(3, rel=0.2)


def test_prompt_steps_with_nothing_to_decode_between_them_are_rounds():
    costs = StepCosts()
    for _ in range(3):
        costs.observe_prefill(0.05, 1, is_full=True)
    observe(costs, 1, 0.01, times=2)
    assert costs.num_rounds == 4
