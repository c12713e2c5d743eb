"""Corrections of a mistyped word: the noise channel, what it leaves alone, and its posterior, against brute force."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.cover_oracle import is_canonical, next_bytes
from support.fake_runner import FakeRunner, fake_engine
from support.tokenizers import merged_byte_level, sentencepiece_like

from superdraft.decoding.model.segments import Segment
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.text import covers
from superdraft.decoding.text.typos import Corrections, last_word

MERGES = [
    ("h", "e"),
    ("r", "e"),
    (" ", "t"),
    (" t", "he"),
    (" the", "re"),
    (" the", "n"),
    ("o", "w"),
    ("o", "r"),
    (" t", "o"),
    (" to", "n"),
    (" ", "w"),
    ("l", "d"),
    (" w", "or"),
    (" wor", "ld"),
    (" wor", "d"),
    (" ", "a"),
    (" a", "s"),
]
TOKENIZER = merged_byte_level(MERGES, split=True)
CORRECTING = GenerationParams(
    num_drafts=3, max_tokens=2, alpha=0, selection="distinct", max_branches=3, token_healing=True, corrections=True
)


def edits(one: str, other: str) -> int:
    """The optimal string alignment distance: edits that replace, add, leave out or swap letters."""
    rows = np.zeros((len(one) + 1, len(other) + 1), dtype=int)
    rows[:, 0], rows[0, :] = range(len(one) + 1), range(len(other) + 1)
    for i, a in enumerate(one, 1):
        for j, b in enumerate(other, 1):
            rows[i, j] = min(rows[i - 1, j] + 1, rows[i, j - 1] + 1, rows[i - 1, j - 1] + (a != b))
            if i > 1 and j > 1 and a == other[j - 2] and one[i - 2] == b:
                rows[i, j] = min(rows[i, j], rows[i - 2, j - 2] + 1)
    return int(rows[-1, -1])


def meant_by(text: str) -> dict[str, float]:
    word = last_word(text)
    return {} if word is None else {key.decode(): value for key, value in Corrections.of(word).meant.items()}


@settings(max_examples=60, deadline=None)
@given(word=st.text("abeot", min_size=3, max_size=6), ends=st.sampled_from(["", " "]))
def test_all_that_may_have_been_meant_is_one_edit_away(word, ends):
    found = meant_by(f"Say {word}{ends}")
    assert all(edits(word, meant.strip().lower()) <= 1 for meant in found)
    assert f" {word}" not in found
    assert all(-20 < logprob < 0 for logprob in found.values())
    places = range(len(word))
    near = {word[:i] + c + word[i + 1 :] for i in places for c in "abeot"}
    near |= {word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in places[:-1]}
    near |= {word[:i] + c + word[i:] for i in places for c in "abeot"}
    near |= {word[:i] + word[i + 1 :] for i in (places if ends else places[:-1])}
    assert {f" {one}" for one in near - {word}} <= found.keys(), "all of them, at every place"


def test_likely_slips_weigh_more():
    found = meant_by("I saw tge ")
    assert found[" the"] > found[" toe"], "g is beside h on the keyboard, and far from o"
    assert meant_by("She said helo ")[" hello"] > meant_by("She said helo ")[" helot"]
    assert meant_by("The end teh ")[" the"] > meant_by("The end teh ")[" tech"]


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("I dont ", " don't"),
        ("on monday ", " Monday"),
        ("un cafe ", " café"),
        ("Teh ", "The"),
        ("now.\nTeh ", "The"),
        ("see you tomorow", " tomorrow"),
        ("the docor ", " doctor"),
        ("whhich ", "which"),
    ],
)
def test_what_may_have_been_meant(text, meant):
    assert meant in meant_by(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "at",
        "we shiped v2",
        "see http://exmaple",
        "in /usr/locla",
        "thanks @jonh",
        "ask #genral",
        "mail jonh@exmaple",
        "the NATOO ",
        "an iPhnoe ",
        "snake_caes ",
        "well-knwon",
        "the teh. ",
        "the teh  ",
        "x = foo(y); z = bar(x); retrun",
        "for (int i = 0; i < n; i++) { cotninue",
        "import os\ndef main():\n    prnit",
        "日本語",
    ],
)
def test_left_alone(text):
    assert last_word(text) is None


def test_names_are_corrected_with_reluctance():
    inside, starting = meant_by("I met Jonh "), meant_by("Thanks. Jonh ")
    assert inside[" John"] < starting[" John"] - 3
    assert all(key.strip()[0].isupper() for key in inside), "a capital stays"
    word = last_word("I met Jonh ")
    assert word is not None
    assert word.may_be_name


def test_words_that_the_writer_uses_are_left_alone():
    assert last_word("Kubctl is a tool. With kubctl ").is_repeated
    assert last_word("Kubctl is a tool. With kub").is_repeated
    assert not last_word("The kubctls. With kubctl ").is_repeated
    assert not last_word("see you tomorow ").is_repeated


def run(text, params=CORRECTING, tokenizer=TOKENIZER, scorer=None):
    """The engine's answer, and the covers it chose from."""
    engine, _, runner = fake_engine(tokenizer=tokenizer, document_start=True)
    seen: list[covers.Covers] = []
    choose = engine._pass.openings.choose_opening
    engine._pass.openings.choose_opening = lambda branch, found: (seen.append(found), choose(branch, found))
    output = engine.generate(text, params, scorer) if scorer else engine.generate(text, params)
    return output, seen[0], runner


@pytest.fixture
def everything_counts(monkeypatch):
    for name in ("MIN_STEM_SHARE", "MIN_CHECKED_SHARE", "MIN_CORRECTED_SHARE", "MIN_WORD_PROBABILITY"):
        monkeypatch.setattr(covers, name, 1e-30)


def logprobs_of(tokenizer):
    """A function that gives ln p of every token after a text of tokens."""
    runner = FakeRunner(num_slots=1, vocab_size=tokenizer.vocab_size)

    def next_logprobs(token_ids):
        key = list(token_ids)
        (logits,) = runner.forward([Segment.plain(0, 0, len(key))], runner.embed(key), [len(key) - 1])
        return torch.log_softmax(logits.double(), dim=-1).tolist()

    return next_logprobs


def oracle(text: str, tokenizer) -> dict[bytes, float]:
    """P(text continues like this | typed), up to a factor, of each token that may have been meant, by trying all."""
    next_logprobs = logprobs_of(tokenizer)
    word = last_word(text)
    front, own = [tokenizer.start_token_id], tokenizer.encode_inside(text)
    start = len(text) - len(word.typed)
    shared = tokenizer.encode_inside(text[:start])
    tail = own[len(shared) :]
    typed, path, stem = word.typed, [*front, *shared], 0.0
    found: dict[bytes, float] = {}
    for length in range(len(tail)):
        before = tokenizer.bytes_of(tail[:length]).decode()
        for token_id, logprob in enumerate(next_logprobs(path)):
            try:
                whole = before + tokenizer.token_bytes[token_id].decode()
            except UnicodeDecodeError:
                continue
            if token_id in tokenizer.suppressed_token_ids or not tokenizer.token_bytes[token_id]:
                continue
            ends = [len(whole)] if word.is_finished else range(len(before) + 1, len(whole) + 1)
            one_edit = [
                value
                for end in ends
                if (value := Corrections.of(word).meant.get(whole[:end].encode())) is not None
                and edits(typed.strip().lower(), whole[:end].strip().lower()) <= 1
            ]
            if not one_edit or (not word.is_finished and (whole.startswith(typed) or typed.startswith(whole))):
                continue
            if is_canonical([*shared, *tail[:length], token_id], 0, tokenizer):
                key = whole.encode()
                found[key] = found.get(key, 0.0) + math.exp(stem + logprob + max(one_edit))
        stem += next_logprobs(path)[tail[length]]
        path.append(tail[length])
    return found


@pytest.mark.usefixtures("everything_counts")
@pytest.mark.parametrize("text", ["a wrold", " then teh", "as ton thr", "so tehre", " a wodr"])
def test_posterior_at_every_cut(text):
    num_corrected = 0
    for end in range(1, len(text) + 1):
        word = last_word(text[:end])
        is_token = word is not None and word.is_finished and len(TOKENIZER.encode_inside(f" {word.text}")) == 1
        if word is None or word.is_repeated or is_token:
            continue
        _, found, _ = run(text[:end])
        got: dict[bytes, float] = {}
        for opening in found.openings(10_000):
            stem = found.stems[opening.stem]
            if stem.replaced:
                key = TOKENIZER.bytes_of(stem.stem_ids) + TOKENIZER.token_bytes[opening.token_id]
                got[key] = got.get(key, 0.0) + math.exp(opening.logprob)
        expected = oracle(text[:end], TOKENIZER)
        assert got.keys() == expected.keys(), text[:end]
        for key, value in expected.items():
            assert got[key] == pytest.approx(value, rel=1e-4), (text[:end], key)
        num_corrected += len(got)
    assert num_corrected > 3


@pytest.mark.usefixtures("everything_counts")
def test_shares_of_typed_and_meant_add_up():
    _, found, _ = run(" a wrold")
    shares = np.exp(found.shares())
    assert shares.sum() == pytest.approx(1, abs=1e-5)
    exact = sum(math.exp(stem.log_mass) for stem in found.stems if not stem.replaced)
    _, plain, _ = run(" a wrold", replace(CORRECTING, corrections=False))
    assert exact == pytest.approx(math.exp(plain.log_total), rel=1e-4)


@pytest.mark.usefixtures("everything_counts")
@pytest.mark.parametrize(("text", "replaced"), [(" a wrold", "wrold"), ("as tehre ", "tehre "), ("wrold ", "wrold ")])
def test_drafts_say_what_they_replace(text, replaced):
    params = replace(CORRECTING, num_drafts=8)
    output, _, _ = run(text, params)
    corrected = [draft for draft in output.drafts if draft.replaces]
    assert corrected
    for draft in corrected:
        assert draft.replaces.text == replaced
        assert draft.replaces.characters == len(replaced)
        assert text.endswith(replaced)
        assert "".join(draft.tokens).startswith(draft.text)
        assert not draft.text.startswith(replaced.strip())
    assert len({(draft.replaces, draft.text) for draft in output.drafts}) == len(output.drafts)


@pytest.mark.usefixtures("everything_counts")
def test_draft_after_a_correction_is_that_of_the_corrected_text():
    """The tokens behind it were chosen on the corrected tokens, and the tree has them for the corrected prompt."""
    text, params = "as tehre ", replace(CORRECTING, num_drafts=8, max_tokens=4, max_branches=8)
    engine, _, _ = fake_engine(tokenizer=TOKENIZER, document_start=True, num_slots=1)
    draft = next(one for one in engine.generate(text, params).drafts if one.replaces and one.text.startswith("there "))
    before = text.removesuffix(draft.replaces.text)
    again = engine.generate(
        before + "there", replace(params, corrections=False, num_drafts=1, max_branches=1, token_healing=False)
    )
    assert again.usage.cached_tokens >= len(TOKENIZER.encode_inside(before.strip() + " there")) - 1
    path = [TOKENIZER.start_token_id, *TOKENIZER.encode_inside(before + "there"), draft.token_ids[0]]
    next_logprobs = logprobs_of(TOKENIZER)
    for token_id, logprob in zip(draft.token_ids[1:], draft.token_logprobs[1:], strict=True):
        assert logprob == pytest.approx(next_logprobs(path)[token_id], abs=1e-3)
        path.append(token_id)


def test_nothing_is_replaced_unless_it_is_asked_for():
    output, found, _ = run(" a wrold", replace(CORRECTING, corrections=False))
    assert not any(draft.replaces for draft in output.drafts)
    assert not any(stem.replaced for stem in found.stems)


@pytest.mark.usefixtures("everything_counts")
def test_a_finished_word_that_is_a_token_is_known():
    _, found, _ = run("as ton ")
    assert not any(stem.replaced for stem in found.stems)


def test_a_probable_word_is_not_looked_at(monkeypatch):
    monkeypatch.setattr(covers, "MIN_CORRECTED_SHARE", 1e30)  # then even these covers are probable enough
    monkeypatch.setattr(Corrections, "of", classmethod(lambda *_: pytest.fail("looked for")))
    run(" a wrold")


class Knowing:
    """An n-gram model that has seen every sequence of tokens, or none."""

    order = 3

    def __init__(self, logprob: float) -> None:
        self.logprob = logprob

    def initial_state(self, token_ids):
        return ()

    def advance(self, state, token_id):
        return (*state, token_id)[-2:]

    def score(self, states, candidates):
        return [[self.logprob] * len(tokens) for tokens in candidates]


@pytest.mark.usefixtures("everything_counts")
@pytest.mark.parametrize(("logprob", "is_corrected"), [(math.log(0.5), False), (math.log(0.001), True)])
def test_words_of_the_requests_ngram_model_are_left_alone(logprob, is_corrected):
    params = replace(CORRECTING, alpha=0.2)
    _, found, _ = run(" a wrold", params, scorer=Knowing(logprob))
    assert any(stem.replaced for stem in found.stems) == is_corrected


@pytest.mark.usefixtures("everything_counts")
def test_every_tokenizer_and_strategy_gives_an_answer():
    for tokenizer in (TOKENIZER, sentencepiece_like(), merged_byte_level(MERGES, split=False)):
        for strategy in ("superposed", "sample", "greedy", "sample+superposed"):
            own = {} if strategy == "superposed" else {"selection": "paper", "max_branches": 1}
            params = replace(CORRECTING, strategy=strategy, seed=1, **own)
            for text in ("wrobo ", "a wrob", "a wrob ", "Wrob "):
                output, _, _ = run(text, params, tokenizer)
                assert output.drafts
                for draft in output.drafts:
                    assert not draft.replaces or text.endswith(draft.replaces.text)


def test_exact_distribution_is_that_of_the_text_with_a_longer_tail():
    """A finished word of several tokens is healed as a whole, which changes nothing about what may follow."""
    text = "as tehre "
    _, found, _ = run(text)
    next_logprobs = logprobs_of(TOKENIZER)
    expected = next_bytes(
        text, [TOKENIZER.start_token_id], TOKENIZER, next_logprobs, set(TOKENIZER.suppressed_token_ids)
    )
    got: dict[int | None, float] = {}
    for opening in found.openings(10_000):
        stem = found.stems[opening.stem]
        if not stem.replaced:
            data = TOKENIZER.token_bytes[opening.token_id]
            key = data[len(stem.rest)] if data else None
            got[key] = got.get(key, 0.0) + math.exp(opening.logprob)
    total = sum(got.values())
    best = max(expected, key=expected.get)
    assert got[best] / total == pytest.approx(expected[best], abs=0.05)


@pytest.mark.usefixtures("everything_counts")
def test_the_best_draft_behind_a_corrected_word_has_the_words_probability():
    """What follows the word is less sure than the word, and would keep it from being shown."""
    output, found, _ = run("as tehre ", replace(CORRECTING, num_drafts=8, min_probability=0.0))
    (stem,) = [one for one in found.stems if one.replaced and TOKENIZER.bytes_of(one.stem_ids) == b" there"]
    scores = [draft.score for draft in output.drafts if draft.replaces and draft.text.startswith("there ")]
    assert max(scores) == pytest.approx(stem.log_mass - found.log_total)
    assert all(score < max(scores) - 1 for score in sorted(scores)[:-1])
