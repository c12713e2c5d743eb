"""The choice of next tokens as tensor operations against the host's functions, row by row."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from superdraft.decoding.device_choice import DeviceChoice, StepShape, most_candidates, superposed
from superdraft.decoding.device_rows import Column, DraftRows, RowKind
from superdraft.decoding.sampling import nucleus_sample
from superdraft.decoding.scoring import interpolate, tempered_logprobs, top_candidates
from superdraft.decoding.superposition import draft_weights, superpose

V, MAX_DRAFTS, ORDER = 40, 4, 3
SUPPRESSED, ENDS = torch.tensor([3, 7]), torch.tensor([0, 11])


class TableOfRandomScores:
    """What `NgramTables` gives, out of thin air: the next state is (row's draft, token)."""

    def __init__(self, seed: int, share_of_zeros: float) -> None:
        rng = np.random.default_rng(seed)
        self.logprobs = torch.from_numpy(rng.uniform(-9, -0.1, (MAX_DRAFTS, V)))
        self.logprobs[torch.from_numpy(rng.random((MAX_DRAFTS, V)) < share_of_zeros)] = -torch.inf

    def score(self, nodes: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        num_drafts = nodes.shape[1]
        logprobs = self.logprobs[:num_drafts, ids].transpose(0, 1)
        states = torch.stack(
            [torch.arange(num_drafts).view(1, -1, 1).expand(logprobs.shape), ids.unsqueeze(1).expand(logprobs.shape)],
            dim=-1,
        )
        return logprobs, states


def columns(kind: RowKind, **options: float) -> dict[Column, float]:
    values = dict.fromkeys(Column, 0.0) | {Column.KIND: kind, Column.TAU: 1.0, Column.TOP_P: 1.0, Column.LENGTH: 5}
    return values | {Column[name.upper()]: value for name, value in options.items()}


def choice_of(lines: list[list[float]], rows: DraftRows) -> DeviceChoice:
    rows.lines[: len(lines)] = torch.tensor(lines, dtype=torch.float64)
    return DeviceChoice(rows, V, SUPPRESSED, ENDS)


@st.composite
def one_row(draw: st.DrawFn) -> tuple[dict[Column, float], list[int], list[float]]:
    num_alive = draw(st.integers(1, MAX_DRAFTS))
    settings = columns(
        draw(st.sampled_from([RowKind.SUPERPOSED, RowKind.OWN])),
        alpha=draw(st.sampled_from([0.0, 0.54, 1.0])),
        tau=draw(st.floats(0.05, 3)),
        penalty=draw(st.sampled_from([0.0, 200.0])),
        num_drafts=draw(st.integers(num_alive, MAX_DRAFTS)),
        num_candidates=draw(st.integers(1, most_candidates(MAX_DRAFTS))),
    )
    scores = draw(st.lists(st.floats(-20, 0), min_size=num_alive, max_size=num_alive))
    return settings, draw(st.lists(st.integers(12, V - 1), min_size=num_alive, max_size=num_alive)), scores


@settings(max_examples=150, deadline=None)
@given(st.lists(one_row(), min_size=1, max_size=4), st.integers(0, 10**6), st.sampled_from([0.0, 0.6, 1.0]))
def test_children_and_their_scores_are_the_hosts(drawn, seed, share_of_zeros):
    logits = torch.from_numpy(np.random.default_rng(seed).standard_normal((len(drawn), V)).astype(np.float32) * 3)
    logits[-1, 30:] = -torch.inf
    rows = DraftRows(8, MAX_DRAFTS, torch.device("cpu"))
    rows.place_ngram(ORDER)
    choose = choice_of([rows.line(*row) for row in drawn], rows)
    choose.tables = TableOfRandomScores(seed, share_of_zeros)
    shape = StepShape(len(drawn), 64, MAX_DRAFTS, samples_all=False, samples_nucleus=False, with_ngram=True)
    results = choose(logits, shape).numpy()

    nums = [int(settings[Column.NUM_CANDIDATES]) for settings, _, _ in drawn]
    for place, ((options, _, scores), found, result) in enumerate(
        zip(drawn, top_candidates(logits, nums, SUPPRESSED), results, strict=True)
    ):
        ngram = choose.tables.logprobs[: len(scores), found.token_ids].numpy()
        lm = tempered_logprobs(found.logits, options[Column.TAU])
        steps = interpolate(lm, ngram, options[Column.ALPHA], options[Column.PENALTY])
        children = {
            (parent, token): scores[parent] + steps[parent if len(steps) > 1 else 0][at]
            for parent in range(len(scores))
            for at, token in enumerate(found.token_ids)
        }
        if options[Column.KIND] == RowKind.OWN:
            best = {parent: max(score for (p, _), score in children.items() if p == parent) for parent, _ in children}
            children = {key: score for key, score in children.items() if score == best[key[0]]}
        # Of a draft's own equal ones the first alone.
        offered = best if options[Column.KIND] == RowKind.OWN else children
        expected = sorted((score for score in offered.values() if score > -math.inf), reverse=True)
        num_listed = shape.num_children
        totals, parents, tokens, logprobs = result[1:].reshape(4, num_listed)
        num = min(num_listed, len(expected))
        assert totals[:num] == pytest.approx(expected[:num], abs=1e-9)
        assert np.isneginf(totals[num:]).all()
        for total, parent, token, logprob in list(zip(totals, parents, tokens, logprobs, strict=True))[:num]:
            assert children[int(parent), int(token)] == pytest.approx(total, abs=1e-9)
            assert logprob == pytest.approx(found.logprobs[found.token_ids.index(int(token))], abs=1e-9)
        alive = [
            (total, parent, token)
            for total, parent, token in zip(totals[:num], parents, tokens, strict=False)
            if int(token) not in ENDS.tolist()
        ][: int(options[Column.NUM_DRAFTS])]
        after = rows.scores(8, MAX_DRAFTS)[place].tolist()
        assert after == [total for total, _, _ in alive] + [-math.inf] * (MAX_DRAFTS - len(alive))
        assert rows.tokens(8, MAX_DRAFTS)[place, : len(alive)].tolist() == [token for _, _, token in alive]
        if options[Column.ALPHA] > 0:
            states = rows.nodes[place, : len(alive)].tolist()
            assert states == [[parent, token] for _, parent, token in alive]
        assert rows.lines[place, Column.LENGTH] == 6


def test_equal_scores_go_to_the_better_parent_and_then_to_the_likelier_token():
    rows = DraftRows(1, MAX_DRAFTS, torch.device("cpu"))
    line = rows.line(columns(RowKind.SUPERPOSED, num_drafts=3, num_candidates=2), [20, 21], [-1.0, -1.0])
    logits = torch.full((1, V), -torch.inf)
    logits[0, [25, 30]] = 0.0
    shape = StepShape(1, 64, MAX_DRAFTS, samples_all=False, samples_nucleus=False, with_ngram=False)
    _, parents, tokens, _ = choice_of([line], rows)(logits, shape)[0, 1:].reshape(4, -1)
    assert parents[:4].tolist() == [0, 0, 1, 1]
    assert tokens[0] == tokens[2]
    assert tokens[1] == tokens[3]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_numbers_show_and_leave_numbers_behind(value):
    rows = DraftRows(2, MAX_DRAFTS, torch.device("cpu"))
    lines = [rows.line(columns(RowKind.SUPERPOSED, num_drafts=2, num_candidates=4), [20, 21], [-1.0, -2.0])] * 2
    logits = torch.zeros(2, V)
    logits[0, 5] = value
    shape = StepShape(2, 64, MAX_DRAFTS, samples_all=False, samples_nucleus=False, with_ngram=False)
    results = choice_of(lines, rows)(logits, shape)
    assert results[:, 0].isfinite().tolist() == [False, True]
    embedding = torch.nn.Embedding(V, 8)
    assert superposed(rows, embedding, shape).isfinite().all()


def test_a_row_without_drafts_is_fed_zeros():
    rows = DraftRows(1, MAX_DRAFTS, torch.device("cpu"))
    rows.scores(1, MAX_DRAFTS).fill_(-torch.inf)
    shape = StepShape(1, 64, MAX_DRAFTS, samples_all=False, samples_nucleus=False, with_ngram=False)
    assert not superposed(rows, torch.nn.Embedding(V, 8), shape).any()


@given(st.lists(st.floats(-30, 0), min_size=1, max_size=MAX_DRAFTS), st.integers(0, 1000))
def test_the_superposed_embedding_is_the_hosts(scores, seed):
    torch.manual_seed(seed)
    embedding = torch.nn.Embedding(V, 8)
    tokens = torch.randint(V, (len(scores),))
    rows = DraftRows(1, MAX_DRAFTS, torch.device("cpu"))
    rows.lines[0] = torch.tensor(rows.line(columns(RowKind.SUPERPOSED), tokens.tolist(), scores))
    shape = StepShape(1, 64, MAX_DRAFTS, samples_all=False, samples_nucleus=False, with_ngram=False)
    with torch.inference_mode():
        expected = superpose(embedding(tokens), [draft_weights(scores)])
        assert torch.allclose(superposed(rows, embedding, shape), expected, atol=1e-6)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.3, 1.0, 2.0]), st.sampled_from([1e-6, 0.5, 0.95, 1.0]))
def test_samples_are_the_hosts(seed, temperature, top_p):
    logits = torch.from_numpy(np.random.default_rng(seed).standard_normal((2, V)).astype(np.float32) * 2)
    rows = DraftRows(2, MAX_DRAFTS, torch.device("cpu"))
    sampled = columns(RowKind.SAMPLED, num_drafts=1, num_candidates=1, temperature=temperature, top_p=top_p)
    other = columns(RowKind.SUPERPOSED, num_drafts=1, num_candidates=1)
    choose = choice_of([rows.line(sampled, [20], [-2.0]), rows.line(other, [20], [-2.0])], rows)
    rows.uniforms[0] = np.random.default_rng(seed).random()
    shape = StepShape(2, 64, 1, samples_all=top_p >= 1, samples_nucleus=top_p < 1, with_ngram=False)
    result, other_result = choose(logits, shape)
    allowed = logits[0].index_fill(0, SUPPRESSED, -torch.inf)
    normaliser = float(logits[0].double().logsumexp(0))
    token, logprob = nucleus_sample(allowed, normaliser, temperature, top_p, np.random.default_rng(seed))
    total, parent, got, got_logprob = result[1:].reshape(4, -1)[:, 0].tolist()
    assert (parent, got) == (0, token)
    assert got_logprob == pytest.approx(logprob, abs=1e-5)
    assert total == pytest.approx(-2.0 + logprob, abs=1e-5)
    best = logits[1].index_fill(0, SUPPRESSED, -torch.inf).argmax()
    assert other_result[1:].reshape(4, -1)[2, 0] == best
