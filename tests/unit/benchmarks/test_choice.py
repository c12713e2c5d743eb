"""`superdraft lab bench choice`."""

from support.decoding import tiny_engine

from superdraft.benchmarks.in_process.choice import TOKENS_PER_RUN, measure
from superdraft.decoding.engine.decode import DecodeStep
from superdraft.decoding.params import GenerationParams


def test_only_steps_in_which_all_requests_run_are_measured():
    engine, _ = tiny_engine(num_slots=4)
    choose = DecodeStep.choose
    row = measure(engine, 3, GenerationParams(num_drafts=2, alpha=0, max_tokens=TOKENS_PER_RUN), num_runs=2)
    assert (row["requests"], row["num_drafts"]) == (3, 2)
    # The first of a request's tokens comes from the prompt's pass; drafts may end before the last.
    assert 2 <= row["steps"] <= 2 * (TOKENS_PER_RUN - 1)
    assert row["choice_ms"] > 0 < row["forward_ms"]
    assert DecodeStep.choose is choose
    assert not engine.has_unfinished
