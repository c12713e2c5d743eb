"""Admission: a prompt's tokens, the token that begins a document, prompts that are too long."""

import pytest
from support.fake_runner import fake_engine
from support.models import QWEN_FIM, tiny_fim_tokenizer, tiny_tokenizer
from support.tokenizers import sentencepiece_like

from superdraft.decoding.config import EngineConfig
from superdraft.decoding.engine.admission import Admission, fit_to_context, tokenise
from superdraft.decoding.errors import InvalidRequestError, PromptTooLongError
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.prompt import PlainText, PrefixedText
from superdraft.decoding.request import EngineRequest
from superdraft.decoding.text.tokenizer import Tokenizer

TINY = Tokenizer(tiny_tokenizer())
SENTENCEPIECE = sentencepiece_like()
FIM = Tokenizer(tiny_fim_tokenizer())
START = TINY.start_token_id
TEXT = "Thank you for your email"


def test_a_text_gets_the_token_that_begins_a_document_and_token_ids_do_not():
    own = tuple(TINY.encode(TEXT))
    tokens = tokenise(TEXT, TINY)
    assert (tokens.token_ids, tokens.num_start, tokens.num_fixed) == ((START, *own), 1, 1)
    assert tokenise(TEXT, TINY, document_start=False).token_ids == own
    assert tokenise(own, TINY).token_ids == own


def test_a_text_that_begins_with_a_special_token_gets_no_second_one():
    spelled = f"<|endoftext|>{TEXT}"
    assert tokenise(spelled, TINY).token_ids == tuple(TINY.encode(spelled))
    assert tokenise("wor", SENTENCEPIECE).token_ids == tuple(SENTENCEPIECE.encode("wor"))
    assert tokenise("wor", SENTENCEPIECE).num_fixed == 1


def test_plain_text_at_the_beginning_of_a_document_is_encoded_as_such():
    begin = SENTENCEPIECE.start_token_id
    assert tokenise(PrefixedText((begin,), "wor"), SENTENCEPIECE).token_ids == (begin, *SENTENCEPIECE.encode("wor")[1:])
    inside = tokenise(PrefixedText((begin, begin), "wor"), SENTENCEPIECE)
    assert SENTENCEPIECE.bytes_of(inside.token_ids) == b"wor"
    spelled = tokenise(PrefixedText((START,), "<|endoftext|>"), TINY)
    assert TINY.bytes_of(spelled.token_ids) == b"<|endoftext|>"
    with pytest.raises(InvalidRequestError, match="prompt\\[0\\] is 9999"):
        tokenise(PrefixedText((9999,), "a"), TINY)


@pytest.mark.parametrize("tokenizer", [TINY, SENTENCEPIECE, FIM], ids=["tiny", "sentencepiece", "fim"])
@pytest.mark.parametrize("document_start", [True, False])
def test_plain_text_is_encoded_as_any_text_is(tokenizer, document_start):
    for text in ("", "wor", " wor", "a\n\tb ", "é日👍", TEXT, "we are a b " * 2000):
        for min_tokens in (None, 20):
            options = {"document_start": document_start, "min_tokens": min_tokens}
            assert tokenise(PlainText(text), tokenizer, **options) == tokenise(text, tokenizer, **options)


@pytest.mark.parametrize("tokenizer", [TINY, SENTENCEPIECE, FIM], ids=["tiny", "sentencepiece", "fim"])
def test_nothing_in_plain_text_becomes_a_special_token(tokenizer):
    spelled = "".join(("<|endoftext|>", "</s>", "<s>", *QWEN_FIM))
    for text in (spelled, f"a {spelled} b", spelled * 200):
        assert text.encode() not in tokenizer.bytes_of(tokenise(text, tokenizer).token_ids)
        tokens = tokenise(PlainText(text), tokenizer)
        assert tokenizer.bytes_of(tokens.token_ids).lstrip() == text.encode()
        assert all(tokenizer.token_bytes[i] for i in tokens.token_ids[tokens.num_fixed :])
        assert tokens.num_fixed == 1


def test_the_token_in_front_is_not_counted():
    engine, _, _ = fake_engine(document_start=True)
    params = GenerationParams(max_tokens=2, alpha=0, token_healing=True)
    output = engine.generate(TEXT, params)
    assert output.usage.prompt_tokens == len(TINY.encode(TEXT)) == len(output.prompt_token_ids)
    again = engine.generate(TEXT, params)
    assert again.usage.cached_tokens == again.usage.prompt_tokens


def test_a_shortened_prompt_keeps_the_token_in_front_and_one_that_just_fits_loses_it():
    own = TINY.encode(TEXT)
    tokens = tokenise(TEXT, TINY)
    cut, (warning,) = fit_to_context(tokens, 4, 4 + 6, "truncate_left")
    assert cut.token_ids == (START, *own[-5:])
    assert f"The first {len(own) - 5} tokens of the prompt were left out" in warning
    fitting, warnings = fit_to_context(tokens, 4, 4 + len(own), "error")
    assert (fitting.token_ids, fitting.num_start, fitting.num_fixed, warnings) == (tuple(own), 0, 0, [])
    with pytest.raises(PromptTooLongError, match=f"has {len(own)} tokens .* by 1 tokens"):
        fit_to_context(tokens, 4, 4 + len(own) - 1, "error")


@pytest.mark.parametrize("prompt", ["we are " * 1000, PrefixedText((START, 5), "we are " * 1000)])
def test_a_prompt_far_too_long_is_refused_with_a_lower_bound(prompt):
    """Its tokens are not counted, since only its end is encoded."""
    admission = Admission(TINY, EngineConfig(), 24, 4, lambda *_: 1)
    message = r"at least \d+ tokens and max_tokens is 8.*by at least \d+ tokens"
    with pytest.raises(PromptTooLongError, match=message):
        admission.admit(EngineRequest("a", prompt, GenerationParams(max_tokens=8)))


def test_only_the_end_of_a_long_prompt_is_encoded():
    text = "we are a b " * 2000
    own = TINY.encode(text)
    cutting = Admission(TINY, EngineConfig(prompt_too_long="truncate_left"), 24, 4, lambda *_: 1)
    sequence = cutting.admit(EngineRequest("a", text, GenerationParams(max_tokens=8)))
    assert list(sequence.prompt_token_ids) == [START, *own[-15:]]
    assert sequence.warnings[0] == ("The beginning of the prompt was left out: only 16 tokens fit beside max_tokens.")
    with pytest.raises(PromptTooLongError, match="has at least") as raised:
        fit_to_context(tokenise(text, TINY, min_tokens=17), 8, 24, "error")
    assert int(str(raised.value).split()[5]) <= len(own)


@pytest.mark.parametrize("tokenizer", [TINY, SENTENCEPIECE], ids=["tiny", "sentencepiece"])
@pytest.mark.parametrize("text", [TEXT, "", "<|endoftext|>we", "a\n\t", "we are a b " * 2000])
@pytest.mark.parametrize("kind", [str, PlainText, lambda text: PrefixedText((1, 2), text), lambda _: [3, 4]])
def test_a_prepared_request_is_admitted_as_it_would_have_been_without(tokenizer, text, kind):
    admission = Admission(tokenizer, EngineConfig(prompt_too_long="truncate_left"), 24, 4, lambda *_: 1)
    request = EngineRequest("a", kind(text), GenerationParams(max_tokens=8, token_healing=True))
    expected, sequence = admission.admit(request), admission.admit(admission.prepare(request))
    for name in ("prompt_token_ids", "num_start_tokens", "healing", "warnings"):
        assert getattr(sequence, name) == getattr(expected, name)


@pytest.mark.parametrize(
    ("prompt", "options"),
    [
        ("a", {"num_drafts": 1000, "max_tokens": 2}),
        ("a", {"logit_bias": ((9999, 1.0),), "max_tokens": 2}),
        ("a\ud800", {"max_tokens": 2}),
        ((9999,), {"max_tokens": 2}),
        ("x" * 5000, {"max_tokens": 8}),
        ("we are a b " * 6, {"max_tokens": 8}),  # its exact number of tokens is too large
    ],
)
def test_a_prepared_request_is_refused_as_it_would_have_been_without(prompt, options):
    admission = Admission(TINY, EngineConfig(), 24, 4, lambda *_: 1)
    request = EngineRequest("a", prompt, GenerationParams(**options))
    with pytest.raises(InvalidRequestError) as expected:
        admission.admit(request)
    with pytest.raises(type(expected.value)) as raised:
        admission.admit(admission.prepare(request))
    assert (str(raised.value), raised.value.param) == (str(expected.value), expected.value.param)


def test_a_prepared_request_is_not_encoded_again(monkeypatch):
    admission = Admission(TINY, EngineConfig(), 24, 4, lambda *_: 1)
    prepared = admission.prepare(EngineRequest("a", TEXT, GenerationParams(max_tokens=2)))
    monkeypatch.setattr(Tokenizer, "encode", None)
    assert admission.admit(prepared).prompt_token_ids == [START, *prepared.prompt.token_ids[1:]]


def test_an_improbable_draft_ends_after_its_first_word_or_after_twice_the_fewest_tokens():
    """Two letters are an unfinished word, so two more tokens are allowed; punctuation has no word to finish."""
    engine, _, _ = fake_engine()
    letters = {token: i for i, token in enumerate(engine.tokenizer.token_bytes) if token.isalpha() and len(token) == 1}
    marks = engine.tokenizer.encode_inside("!") + engine.tokenizer.encode_inside("?")
    options = {"selection": "distinct", "alpha": 0, "tau": 1, "num_drafts": 1, "min_probability": 1.0}

    def length(allowed):
        bias = tuple((i, 100.0) for i in allowed)
        params = GenerationParams(max_tokens=10, min_draft_tokens=2, logit_bias=bias, **options)
        (draft,) = engine.generate(TEXT, params).drafts
        assert draft.finish_reason == "improbable"
        return len(draft.token_ids)

    assert length(letters.values()) == 4
    assert length(marks) == 2
