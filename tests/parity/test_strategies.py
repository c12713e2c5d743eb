"""The strategies on tiny models: rows, exactness, reused prefixes, resets, forks, token healing, penalties."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from support.decoding import HashScorer, counted_rows, run_all, texts, tiny_engine

from superdraft.decoding.errors import InvalidRequestError
from superdraft.decoding.method.draft_set import DraftSet
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.request import EngineRequest
from superdraft.decoding.text.healing import CanonicalCheck

ARCHITECTURES = ("llama", "gpt2", "gemma3_text", "mistral")
PROMPT = "Thank you for your email. I will get"


def params(**options: object) -> GenerationParams:
    return GenerationParams(**({"max_tokens": 8, "tau": 0.5, "alpha": 0.5} | options))


def token_ids(output) -> list[tuple[int, ...]]:
    return [draft.token_ids for draft in output.drafts]


def exact_logprob(model, prompt, draft) -> list[float]:
    ids = torch.tensor([[*prompt, *draft]])
    with torch.inference_mode():
        logprobs = torch.log_softmax(model(input_ids=ids).logits[0], dim=-1)
    return [float(logprobs[len(prompt) - 1 + i, token]) for i, token in enumerate(draft)]


def test_samples_take_a_row_each_and_their_logprobs_are_exact():
    engine, model = tiny_engine()
    with counted_rows(model) as shapes:
        output = engine.generate(PROMPT, params(strategy="sample", num_drafts=3, seed=1, max_tokens=6))
    assert shapes[1:] == [(1, 3)] * 5
    assert output.usage.forward_rows == 15
    assert len(set(token_ids(output))) == 3
    for draft in output.drafts:
        expected = exact_logprob(model, output.prompt_token_ids, draft.token_ids)
        assert list(draft.token_logprobs) == pytest.approx(expected, abs=1e-3)
        assert draft.score == pytest.approx(np.mean(expected), abs=1e-3)
    assert [draft.score for draft in output.drafts] == sorted((d.score for d in output.drafts), reverse=True)


def test_a_seed_repeats_samples_and_another_does_not():
    engine, _ = tiny_engine()
    first, again, other = (
        engine.generate(PROMPT, params(strategy="sample", num_drafts=3, seed=seed)) for seed in (1, 1, 2)
    )
    assert token_ids(first) == token_ids(again)
    assert token_ids(first) != token_ids(other)


def test_temperature_zero_samples_and_greedy_are_the_most_probable_tokens():
    engine, _ = tiny_engine()
    greedy = engine.generate(PROMPT, params(strategy="greedy", num_drafts=3))
    assert len(greedy.drafts) == 1
    assert greedy.usage.forward_rows == 7
    cold = engine.generate(PROMPT, params(strategy="sample", num_drafts=2, temperature=0.0))
    superposed = engine.generate(PROMPT, params(num_drafts=1, alpha=0.0))
    assert token_ids(cold) == token_ids(greedy) == token_ids(superposed)


def test_sample_superposed_gives_k_drafts_from_each_branch():
    engine, model = tiny_engine()
    wanted = params(strategy="sample+superposed", num_branches=3, num_drafts=2, seed=5, temperature=2.0)
    with counted_rows(model) as shapes:
        output = engine.generate(PROMPT, wanted, HashScorer())
    assert shapes[1:] == [(1, 3)] * 7
    starts = [draft.token_ids[:3] for draft in output.drafts]
    assert len(set(starts)) == 3  # three tokens are sampled, then each branch has its two drafts
    assert sorted(starts.count(start) for start in set(starts))[1:] == [2, 2]
    assert len(output.drafts) >= 5  # of six; two may differ in broken characters only


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_prefix_hit_gives_the_same_drafts_as_a_cold_run(architecture):
    warm, _ = tiny_engine(architecture)
    typed = "Thank you for your email. I will get back"
    for end in (9, 12, 13, 14, 20, len(typed), 15, 3):
        for variant in (params(), params(strategy="sample", num_drafts=2, seed=3), params(reset_every=3, seed=2)):
            cold, _ = tiny_engine(architecture)
            expected = cold.generate(typed[:end], variant, HashScorer())
            got = warm.generate(typed[:end], variant, HashScorer())
            assert token_ids(got) == token_ids(expected)
            # Random weights this wide turn rounding of 1e-6 in a key into 1e-3 in a logit.
            assert [d.score for d in got.drafts] == pytest.approx([d.score for d in expected.drafts], abs=2e-3)
            assert expected.usage.cached_tokens == 0
    assert got.usage.cached_tokens == got.usage.prompt_tokens


def test_only_real_tokens_are_reused_never_superposed_ones():
    engine, model = tiny_engine()
    ids = engine.tokenizer.encode(PROMPT)
    drafts = engine.generate(ids, params(), HashScorer()).drafts
    accepted = [*ids, *drafts[0].token_ids]
    with counted_rows(model) as shapes:
        again = engine.generate(accepted, params(), HashScorer())
    assert again.usage.cached_tokens == len(ids)
    assert shapes[0] == (1, len(accepted) - len(ids))
    assert token_ids(again) == token_ids(tiny_engine()[0].generate(accepted, params(), HashScorer()))


def test_chunks_of_a_long_prompt_add_up_to_the_whole():
    whole, _ = tiny_engine()
    chunked, model = tiny_engine(max_prefill_tokens=5)
    prompt = [3 + i % 250 for i in range(31)]
    with counted_rows(model) as shapes:
        got = chunked.generate(prompt, params(), HashScorer())
    assert shapes[:7] == [(1, 5)] * 6 + [(1, 1)]
    assert token_ids(got) == token_ids(whole.generate(prompt, params(), HashScorer()))


def test_resets_restart_from_one_draft_and_from_its_real_tokens():
    engine, model = tiny_engine()
    with counted_rows(model) as shapes:
        output = engine.generate(PROMPT, params(max_tokens=9, reset_every=4, seed=3), HashScorer())
    # prompt, 3 steps, reset (4 real tokens, which also choose the fifth), 3 steps, reset, and the ninth is chosen
    assert shapes[1:] == [(1, 1)] * 3 + [(1, 4)] + [(1, 1)] * 3 + [(1, 4)]
    assert output.usage.forward_rows == 14
    assert len({draft.token_ids[:8] for draft in output.drafts}) == 1
    # After a reset the first step is exact again.
    prompt, draft = output.prompt_token_ids, output.drafts[0]
    expected = exact_logprob(model, prompt, draft.token_ids)
    for position in (0, 4, 8):
        assert draft.token_logprobs[position] == pytest.approx(expected[position], abs=1e-3)
    assert draft.token_logprobs[2] != pytest.approx(expected[2], abs=1e-3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_forked_branch_continues_exactly(architecture):
    engine, _ = tiny_engine(architecture)
    expected = engine.generate(PROMPT, params(num_drafts=3), HashScorer())
    engine.add_request(EngineRequest("a", PROMPT, params(num_drafts=3), HashScorer()))
    for _ in range(3):
        engine.step()
    (branch,) = engine._sequences["a"].branches
    twin = engine._pass.branching._fork(branch, branch.drafts)  # both continue with all drafts, so they must stay equal
    while engine.has_unfinished:
        outputs = engine.step()
        assert [d.token_ids for d in twin.drafts.alive] == [d.token_ids for d in branch.drafts.alive]
    assert token_ids(outputs[0].output) == token_ids(expected)
    assert outputs[0].output.usage.forward_rows == 7 + 5


def test_a_fork_divides_the_drafts():
    engine, model = tiny_engine()
    engine.add_request(EngineRequest("a", PROMPT, params(num_drafts=3, max_tokens=4), HashScorer()))
    engine.step()
    (branch,) = engine._sequences["a"].branches
    *others, last = branch.drafts.alive
    branch.drafts = DraftSet(tuple(others))
    twin = engine._pass.branching._fork(branch, DraftSet((last,)))
    prompt = engine._sequences["a"].prompt_token_ids
    engine.step()
    # A branch of one draft is an exact row.
    child = twin.drafts.alive[0]
    assert child.token_ids[0] == last.token_ids[0]
    assert child.token_logprobs[1] == pytest.approx(exact_logprob(model, prompt, child.token_ids)[1], abs=1e-3)
    run_all(engine)


def test_healing_continues_from_the_last_character():
    engine, _ = tiny_engine()
    prompt = "Thank you for your ema"
    output = engine.generate(prompt, params(token_healing=True, num_drafts=3, alpha=0.0))
    whole = engine.tokenizer.encode(prompt)
    assert output.usage.prompt_tokens == len(whole)
    assert output.prompt_token_ids == tuple(whole)
    for draft in output.drafts:
        assert "".join(draft.tokens).startswith(draft.text.rstrip("\ufffd"))
        assert len(draft.tokens) <= 8
    fed = engine.generate(prompt, params(token_healing=False, num_drafts=3, alpha=0.0))
    assert texts(output) != texts(fed)


def test_a_prompt_that_ends_in_a_space_gets_no_second_one():
    """Nearly all of the probability is on words whose token includes the typed space."""
    engine, _ = tiny_engine()
    prompt = "Thank you for your "
    output = engine.generate(prompt, params(token_healing=True, num_drafts=8, max_tokens=1, alpha=0.0))
    for draft in output.drafts:
        whole = engine.tokenizer.encode(prompt + draft.text)
        assert whole[-1:] == list(draft.token_ids)


def test_token_ids_are_not_healed():
    engine, _ = tiny_engine()
    ids = engine.tokenizer.encode("Thank you for your ema")
    plain = engine.generate(ids, params(), HashScorer())
    assert token_ids(engine.generate(ids, params(token_healing=True), HashScorer())) == token_ids(plain)


HEALED = "Thank you for your ema"


@pytest.mark.parametrize("selection", ["paper", "distinct"])
def test_asking_for_logprobs_does_not_change_the_drafts(selection):
    engine, _ = tiny_engine()
    options = {"token_healing": True, "selection": selection, "alpha": 0.0}
    plain = engine.generate(HEALED, params(**options))
    verified = engine.generate(HEALED, params(verify_top=3, echo_logprobs=True, **options))
    assert texts(verified) == texts(plain)
    assert len(verified.prompt_logprobs) == verified.usage.prompt_tokens
    for draft in verified.drafts:
        first, *others = draft.exact_logprobs
        assert first.logprob == draft.token_logprobs[0]
        assert first.text == draft.tokens[0]
        assert len(first.top) == 3
        assert first.top[0][2] == max(top[2] for top in first.top)
        assert len(others) == len(draft.token_ids) - 1


def test_the_paper_superposes_starts_of_one_stem_only():
    engine, _ = tiny_engine()
    for prompt in (HEALED, "We're meeting at noon, a", "def add(a, b):\n   "):
        engine.add_request(EngineRequest("a", prompt, params(token_healing=True, num_drafts=8)))
        (sequence,) = engine._sequences.values()
        engine.step()
        (branch,) = sequence.branches
        assert {draft.stem_ids for draft in branch.drafts.alive} == {branch.stem_ids}
        run_all(engine)


def test_greedy_takes_the_most_probable_text():
    """The best of all covers, not the most probable token after the prompt's own tokens."""
    engine, _ = tiny_engine()
    wanted = params(strategy="greedy", num_drafts=1, alpha=0.0, token_healing=True, max_tokens=1)
    covers = covers_of(engine, HEALED)
    (best,) = covers.openings(1)
    (draft,) = engine.generate(HEALED, wanted).drafts
    assert draft.token_ids == (best.token_id,)
    assert draft.token_logprobs[0] == pytest.approx(best.logprob - covers.log_total)


def test_samples_are_drawn_from_all_covers():
    """In a thousand draws, each opening is about as frequent as its share of the covers."""
    engine, _ = tiny_engine(num_slots=8)
    covers = covers_of(engine, HEALED)
    shares = {
        (covers.stems[opening.stem].stem_ids, opening.token_id): math.exp(opening.logprob - covers.log_total)
        for opening in covers.openings(400)
    }
    wanted = {"strategy": "sample", "num_drafts": 8, "alpha": 0.0, "token_healing": True, "max_tokens": 2}
    counts: Counter[tuple[tuple[int, ...], int]] = Counter()
    for seed in range(125):
        engine.add_request(EngineRequest("a", HEALED, params(seed=seed, **wanted)))
        (sequence,) = engine._sequences.values()
        engine.step()
        for branch in sequence.branches:
            drafts = [*branch.drafts.alive, *branch.drafts.finished]
            counts.update((draft.stem_ids, draft.token_ids[0]) for draft in drafts if draft.token_ids)
        engine.cancel("a")
    total = sum(counts.values())
    assert set(counts) <= set(shares)
    for start, share in sorted(shares.items(), key=lambda item: -item[1])[:5]:
        assert counts[start] / total == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / total))


def covers_of(engine, prompt):
    """The covers from which the engine chooses a prompt's first tokens."""
    seen = []
    choose = engine._pass.openings.choose_opening
    engine._pass.openings.choose_opening = lambda branch, covers: (seen.append(covers), choose(branch, covers))
    engine.generate(prompt, params(token_healing=True, num_drafts=1, max_tokens=1, alpha=0.0))
    engine._pass.openings.choose_opening = choose
    return seen[0]


def test_logit_bias_forbids_and_forces_tokens():
    engine, _ = tiny_engine()
    free = engine.generate(PROMPT, params(num_drafts=2))
    first = free.drafts[0].token_ids[0]
    without = engine.generate(PROMPT, params(num_drafts=2, logit_bias=((first, -100.0),)))
    assert all(first not in draft.token_ids for draft in without.drafts)
    for strategy in ("superposed", "sample", "greedy"):
        forced = engine.generate(PROMPT, params(strategy=strategy, num_drafts=1, logit_bias=((77, 100.0),)))
        assert set(forced.drafts[0].token_ids) == {77}
    with pytest.raises(InvalidRequestError, match="logit_bias"):
        engine.generate(PROMPT, params(logit_bias=((300, 1.0),)))


@pytest.mark.parametrize("strategy", ["superposed", "sample", "greedy"])
def test_penalties_count_the_drafts_own_tokens(strategy):
    """One draft that always takes the best token, compared with the definition applied to the plain model."""
    engine, model = tiny_engine()
    bias, frequency, presence = {65: 30.0, 66: 30.0, 67: 29.0, 68: 28.0}, 1.5, 0.5
    prompt = engine.tokenizer.encode(PROMPT)
    expected: list[int] = []
    for _ in range(10):
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([prompt + expected])).logits[0, -1]
        logits = logits.clone()
        for token, value in bias.items():
            logits[token] += value
        for token in set(expected):
            logits[token] -= expected.count(token) * frequency + presence
        expected.append(int(logits.argmax()))
    wanted = params(
        strategy=strategy,
        num_drafts=1,
        candidates_per_draft=300,
        alpha=0.0,
        temperature=0.0,
        max_tokens=10,
        logit_bias=tuple(bias.items()),
        frequency_penalty=frequency,
        presence_penalty=presence,
    )
    assert engine.generate(prompt, wanted).drafts[0].token_ids == tuple(expected)
    assert len(set(expected)) < 10  # a token was repeated, so its count mattered


def test_more_branches_than_allowed_or_than_fit_in_all_slots_are_refused():
    engine, _ = tiny_engine(num_slots=2, max_num_rows=16)
    with pytest.raises(InvalidRequestError, match=r"num_branches is 17, this server allows at most 16"):
        engine.generate(PROMPT, params(strategy="sample", num_drafts=17))
    long = params(strategy="sample", num_drafts=16, max_tokens=60)
    with pytest.raises(InvalidRequestError, match=r"16 rows of 60 tokens .* need 8 KV-cache slots, this server has 2"):
        engine.generate(PROMPT, long)
    assert not engine.has_unfinished
    assert len(engine.generate(PROMPT, params(strategy="sample", num_drafts=16, seed=1)).drafts) == 16


def test_a_branch_that_ended_takes_no_row_while_its_siblings_go_on():
    engine, model = tiny_engine(num_slots=3)
    engine.add_request(EngineRequest("a", PROMPT, params(strategy="sample", num_drafts=3, seed=1, max_tokens=20)))
    engine.step()
    first = engine._sequences["a"].branches[0]
    engine.step()
    first.sequence.extend = lambda draft, token, *scores, real=first.sequence.extend: real(
        draft, 0 if draft in first.drafts.alive else token, *scores
    )
    with counted_rows(model) as shapes:
        engine.step()
        engine.step()
    assert shapes == [(1, 3), (1, 2)]
    assert engine.num_used_slots == 1
    output = run_all(engine)["a"].output
    assert [draft.finish_reason for draft in output.drafts].count("stop") == 1


@pytest.mark.parametrize("strategy", ["superposed", "sample", "sample+superposed", "greedy"])
@pytest.mark.parametrize("max_branches", [1, 3])
def test_a_typed_text_that_no_canonical_token_continues_has_no_drafts(monkeypatch, strategy, max_branches):
    engine, model = tiny_engine()
    model.get_output_embeddings().weight.data.zero_()  # each start is so improbable that it is checked only when taken
    monkeypatch.setattr(CanonicalCheck, "__call__", lambda _self, _front, token_ids: [False] * len(token_ids))
    options = {"selection": "distinct", "max_branches": max_branches} if strategy == "superposed" else {}
    wanted = GenerationParams(strategy=strategy, token_healing=True, num_drafts=2, max_tokens=4, seed=1, **options)
    assert engine.generate("Thank you for the re", wanted).drafts == ()
    assert engine.generate("Thank you for the re", params(num_drafts=2)).drafts  # the engine goes on
