"""Personal n-grams: what is counted, what is forgotten, what readers see meanwhile, and what the disk keeps."""

import gc
import json
import os
import random
import stat
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superdraft.ngram_models.scoring.accepted_texts import AcceptedTexts
from superdraft.ngram_models.scoring.counts import CountTable
from superdraft.ngram_models.scoring.in_context import InContextScorer
from superdraft.ngram_models.scoring.mixture import UniformScorer
from superdraft.ngram_models.scoring.personal import AcceptedText, PersonalModel, end_of

END = 0
PAIRS = ("th", "he")  # tokens of two characters, as a tokenizer joins them


def encode(text):
    """A pair of PAIRS is one token, every other character another; "." ends a text."""
    token_ids = []
    while text:
        pair = text[:2] if text[:2] in PAIRS else None
        token_ids.append(1000 + PAIRS.index(pair) if pair else END if text[0] == "." else ord(text[0]))
        text = text[len(pair or text[0]) :]
    return token_ids


def make(order=3, max_tokens=100):
    return PersonalModel(encode, {END}, order=order, max_tokens=max_tokens)


def counts_of(model):
    return model.view().lease([]).counts


def counted(*ngrams, order=3):
    table = CountTable(order)
    for context, token in ngrams:
        table.add(tuple(map(ord, context)), ord(token))
    return table


def test_the_text_is_counted_after_its_context_which_is_not():
    model = make()
    model.add([AcceptedText("xab", "cd")])
    assert counts_of(model) == counted(("ab", "c"), ("bc", "d"))
    assert model.num_tokens == 2


def test_ends_of_texts_are_neither_counted_nor_crossed():
    model = make()
    model.add([AcceptedText("a.b", "c.d")])
    assert counts_of(model) == counted(("b", "c"), ("", "d"))


def test_a_word_that_was_typed_half_is_counted_as_later_prompts_will_have_it():
    model = make()
    model.add([AcceptedText("at", "he")])  # one text "athe": tokens a, th, e, none of which is "t" or "h" alone
    counts = counts_of(model)
    assert counts.following((ord("a"),)) == {1000: 1}
    assert counts.following((1000,)) == {ord("e"): 1}
    assert model.num_tokens == 2


def test_the_oldest_texts_are_forgotten_without_a_trace():
    model = make(max_tokens=5)
    model.add([AcceptedText("", "abc"), AcceptedText("z", "de")])
    assert model.num_tokens == 5
    model.add([AcceptedText("", "f")])
    assert model.texts == [AcceptedText("z", "de"), AcceptedText("", "f")]
    assert counts_of(model) == counted(("z", "d"), ("zd", "e"), ("", "f"))


def test_a_text_longer_than_all_that_may_be_kept_is_not_kept():
    model = make(max_tokens=5)
    model.add([AcceptedText("", "abcdef")])
    assert (model.num_tokens, model.texts) == (0, [])
    assert counts_of(model) == CountTable(3)


@given(st.lists(st.tuples(st.text("ab.", max_size=4), st.text("abthe.", max_size=6)), max_size=12), st.data())
def test_a_view_never_changes_and_a_new_one_shows_all(texts, data):
    model, held = make(max_tokens=12), []
    for before, text in texts:
        model.add([AcceptedText(before, text)])
        view = model.view()
        held.append((view, view.lease([]).counts.copy()))
        del held[: data.draw(st.integers(0, len(held)))]
        anew = make()
        anew.add(model.texts)
        assert view.lease([]).counts == counts_of(anew)
    for view, counts in held:
        assert view.lease([]).counts == counts


def test_counts_are_copied_only_for_those_who_hold_them():
    model = make()
    model.add([AcceptedText("", "ab")])
    table = counts_of(model)
    model.add([AcceptedText("", "cd")])
    assert counts_of(model) is table
    scorer = InContextScorer(UniformScorer(10), 0.5, model.view())
    model.add([AcceptedText("", "ef")])
    assert counts_of(model) is not table
    del scorer
    gc.collect()
    copied = counts_of(model)
    model.add([AcceptedText("", "gh")])
    assert counts_of(model) is copied


def test_a_thread_that_scores_sees_the_same_probabilities_while_another_one_adds():
    model, letters = make(max_tokens=60), random.Random(1)
    model.add([AcceptedText("", "abcab")])
    problems, stop = [], threading.Event()
    scorers = [InContextScorer(UniformScorer(200), 0.5, model.view())]
    candidates = list(range(97, 117))

    def read():
        try:
            while not stop.is_set():
                scorer = scorers[-1]
                first = scorer.score([scorer.initial_state([97, 98])], [candidates])
                for _ in range(20):
                    again = scorer.score([scorer.initial_state([97, 98])], [candidates])
                    assert again == first
        except BaseException as error:
            problems.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    for _ in range(2000):
        model.add([AcceptedText("", "".join(letters.choices("abcdefghij", k=5)))])
        scorers[:] = [InContextScorer(UniformScorer(200), 0.5, model.view())]
    stop.set()
    thread.join()
    assert problems == []


def test_what_was_accepted_is_expected_after_its_context():
    model = make()
    model.add([AcceptedText("best r", "egards")])
    scorer = InContextScorer(UniformScorer(200), 0.5, model.view())
    state = scorer.initial_state(encode("best re"))
    (row,) = scorer.score([state], [[ord("g"), ord("a"), ord("z")]])
    assert row[0] > row[1] > row[2]
    (row,) = scorer.score([scorer.advance(state, ord("g"))], [[ord("a"), ord("g")]])
    assert row[0] > row[1]


def test_end_of_a_prompt_begins_with_a_word():
    assert end_of("short") == "short"
    end = end_of("word " * 40)
    assert 50 < len(end) <= 64
    assert end.startswith(" word")
    assert end_of("x" * 100) == "x" * 64


# The file


@pytest.fixture
def file(tmp_path):
    return AcceptedTexts(tmp_path / "a" / "b" / "user.jsonl")


TEXTS = [AcceptedText("Dear ", "Zoë,\nthank you"), AcceptedText("", "x"), AcceptedText("a", "\ufffd\u2028 ")]


def test_what_is_appended_is_read_in_order_and_is_for_its_owner_alone(file):
    assert file.read() == []
    for text in TEXTS:
        file.append(text)
    assert file.read() == TEXTS
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in (file.path.parent, file.path.parents[1])} == {0o700}


def test_an_append_is_on_the_disk_when_it_returns(file, monkeypatch):
    synced = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(os.fstat(descriptor)), sync(descriptor)))
    file.append(TEXTS[0])
    whole = file.path.stat()
    assert (whole.st_ino, whole.st_size) in {(entry.st_ino, entry.st_size) for entry in synced}
    assert file.path.parent.stat().st_ino in {entry.st_ino for entry in synced}  # its name, too


@pytest.mark.parametrize("torn", [b'{"before": "a", "te', b'{"before": "a"', b"{", b"\xff\xfe" * 5000])
def test_a_line_that_was_not_finished_is_left_out_and_cut_off(file, torn):
    file.append(TEXTS[0])
    whole = file.path.read_bytes()
    file.path.write_bytes(whole + torn)
    assert file.read() == TEXTS[:1]
    file.append(TEXTS[1])
    assert file.read() == TEXTS[:2]
    assert file.path.read_bytes().startswith(whole + b'{"before": ""')


def test_a_damaged_line_takes_no_other_with_it(file):
    file.append(TEXTS[0])
    for damaged in (b"\xff\xff", b"[]", b'{"before": 3, "text": "x"}', b'{"text": "x"}', b""):
        file.path.write_bytes(file.path.read_bytes() + damaged + b"\n")
    file.append(TEXTS[1])
    assert file.read() == TEXTS[:2]


def test_an_append_that_fails_leaves_nothing(file, monkeypatch):
    file.append(TEXTS[0])

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="No space"):
            file.append(TEXTS[1])
    assert file.read() == TEXTS[:1]
    assert json.loads(file.path.read_text()) == TEXTS[0]._asdict()


def test_replacing_leaves_the_old_texts_if_it_does_not_come_to_its_end(file, monkeypatch):
    for text in TEXTS:
        file.append(text)

    def fail(descriptor):
        raise OSError(5, "I/O error")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="I/O"):
            file.replace(TEXTS[1:])
    assert file.read() == TEXTS
    file.replace(TEXTS[1:])  # the remains of the one before are in nobody's way
    assert file.read() == TEXTS[1:]
    assert [path.name for path in file.path.parent.iterdir()] == ["user.jsonl"]
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600


def test_deleting_takes_what_was_half_replaced_too(file):
    file.delete()
    file.append(TEXTS[0])
    file.path.with_suffix(".partial").write_bytes(b"secret")
    file.delete()
    file.delete()
    assert list(file.path.parent.iterdir()) == []
