"""Tokenizers from GGUF files against the tokenizers that the files were made from."""

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import transformers
from support.gguf_export import export_vocabulary
from support.nasty_texts import NASTY_TEXTS
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from superdraft.decoding.gguf.file import GgufFile
from superdraft.decoding.gguf.tokenizer import GgufTokenizer, load_gguf_tokenizer
from superdraft.decoding.text.tokenizer import Tokenizer

EOS, TURN, PLAIN = "<|endoftext|>", "<|im_end|>", "<|fim_prefix|>"


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def byte_level(*, use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


DIGITS = {"type": "Digits", "individual_digits": True}
# As in the tokenizer.json of a model of each kind.
KINDS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [byte_level(use_regex=True)],
    "smollm": [DIGITS, byte_level(use_regex=True)],
    "starcoder": [DIGITS, byte_level(use_regex=True)],
    "qwen2": [
        split(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
            r"|\s+(?!\S)|\s+"
        ),
        byte_level(use_regex=False),
    ],
    "llama-bpe": [
        split(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
            r"|\s+(?!\S)|\s+"
        ),
        byte_level(use_regex=False),
    ],
    "deepseek-coder": [
        split(r"[\r\n]"),
        split(r"\s?\p{L}+"),
        split(r"\s?\p{P}+"),
        split("[一-龥ࠀ-一가-퟿]+"),
        DIGITS,
        byte_level(use_regex=False),
    ],
}


def trained(pre: list[dict[str, Any]]) -> Backend:
    """A byte-level BPE whose merges cross the borders of all kinds, so that each kind gives other tokens."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.train_from_iterator(
        [text for text in NASTY_TEXTS for _ in range(3)],
        trainers.BpeTrainer(
            vocab_size=900, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False, min_frequency=2
        ),
    )
    description = json.loads(backend.to_str())
    # A merge fewer: the token exists, but cannot be reached.
    merges = description["model"]["merges"]
    description["model"]["merges"] = [pair for pair in merges if "".join(pair) not in ("Ġthe", "Hello", "email")]
    description["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": pre}
    backend = Backend.from_str(json.dumps(description))
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([EOS, TURN])
    backend.add_tokens([AddedToken(PLAIN, normalized=False, special=False)])
    return backend


def original(kind: str) -> transformers.PreTrainedTokenizerFast:
    backend = trained(KINDS[kind])
    bos = None
    if kind == "qwen2":
        backend.normalizer = normalizers.NFC()
    if kind == "llama-bpe":
        backend.model.ignore_merges = True
        bos = "<|begin_of_text|>"
        backend.add_special_tokens([bos])
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=TURN, bos_token=bos)


def exported(path: Path, tokenizer: transformers.PreTrainedTokenizerBase, kind: str | None) -> GgufTokenizer:
    return load_gguf_tokenizer(GgufFile(export_vocabulary(path, tokenizer, kind)))


def check_same(found: GgufTokenizer, wanted: transformers.PreTrainedTokenizerBase) -> None:
    for text in NASTY_TEXTS:
        assert found.encode(text) == wanted.encode(text), text
        assert found.encode(text, add_special_tokens=False) == wanted.encode(text, add_special_tokens=False), text
    one, other = Tokenizer(found), Tokenizer(wanted)
    assert one.vocabulary == other.vocabulary
    assert one.token_bytes == other.token_bytes
    assert one.eos_token_ids == other.eos_token_ids
    assert one.start_token_id == other.start_token_id
    assert one.suppressed_token_ids == other.suppressed_token_ids
    for text in NASTY_TEXTS:
        assert one.encode_inside(text) == other.encode_inside(text), text
        assert one.encode_document(text) == other.encode_document(text), text
        assert one.last_piece_start(text) == other.last_piece_start(text) if text else True
        assert found.decode(found.encode(text)) == wanted.decode(wanted.encode(text)), text


@pytest.mark.parametrize("kind", KINDS)
def test_a_byte_level_tokenizer_is_the_one_it_was_made_from(kind, tmp_path, capfd):
    wanted = original(kind)
    found = exported(tmp_path / f"{kind}.gguf", wanted, kind)
    check_same(found, wanted)
    assert capfd.readouterr().err == ""


def test_the_kinds_differ():
    """The tests above would pass with any kind if the texts did not tell them apart."""
    ids = {kind: [original(kind).encode(text, add_special_tokens=False) for text in NASTY_TEXTS] for kind in KINDS}
    assert ids["smollm"] == ids["starcoder"]
    assert len({str(found) for found in ids.values()}) == len(KINDS) - 1


def test_bytes_of_a_text_survive(tmp_path):
    for kind in KINDS:
        tokenizer = Tokenizer(exported(tmp_path / f"{kind}.gguf", original(kind), kind))
        for text in NASTY_TEXTS:
            composed = tokenizer.hf_tokenizer.backend_tokenizer.normalizer
            expected = text if composed is None else composed.normalize_str(text)
            assert tokenizer.bytes_of(tokenizer.encode_inside(text)) == expected.encode()


@pytest.mark.parametrize("kind", ["brand-new", "default"])
def test_an_unknown_kind_is_reported_and_split_as_gpt2(kind, tmp_path, capfd):
    found = exported(tmp_path / "new.gguf", original("gpt-2"), kind)
    check_same(found, original("gpt-2"))
    said = capfd.readouterr().err
    assert said.startswith(f"new.gguf: how its tokenizer splits text ({kind}) is unknown; ")
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("pre", ["qwen2", None])
def test_what_the_file_marks_as_no_text_is_never_drafted(pre, tmp_path, monkeypatch):
    wanted = gemma() if pre is None else original(pre)
    names = wanted.convert_ids_to_tokens(range(len(wanted)))
    first = names.index("Hello")  # in qwen2's vocabulary no merges lead to it
    no_text = [gguf.TokenType.UNUSED, gguf.TokenType.CONTROL, gguf.TokenType.UNKNOWN]
    kinds = dict(zip(names[first : first + 3], no_text, strict=True))
    add_types = gguf.GGUFWriter.add_token_types

    def with_others(writer, types):
        return add_types(writer, [kinds.get(token, kind) for token, kind in zip(names, types, strict=True)])

    monkeypatch.setattr(gguf.GGUFWriter, "add_token_types", with_others)
    tokenizer = Tokenizer(exported(tmp_path / "marked.gguf", wanted, pre))
    marked = {first, first + 1, first + 2}
    assert marked == set(tokenizer.suppressed_token_ids) - set(Tokenizer(wanted).suppressed_token_ids)
    assert all(tokenizer.token_bytes[token_id] == b"" for token_id in marked)
    if pre is not None:  # text that spells such a token is text all the same
        assert tokenizer.encode_inside("Hello") == Tokenizer(wanted).encode_inside("Hello") != [first]


def test_a_vocabulary_without_gpt2s_token_does_not_get_it(tmp_path):
    backend = trained(KINDS["gpt-2"])
    description = json.loads(backend.to_str())
    description["added_tokens"] = [token for token in description["added_tokens"] if token["content"] != EOS]
    for number, token in enumerate(description["added_tokens"]):
        token["id"] = backend.token_to_id(EOS) + number
    wanted = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Backend.from_str(json.dumps(description)), eos_token=TURN
    )
    found = exported(tmp_path / "without.gguf", wanted, "gpt-2")
    assert EOS not in found.get_vocab()
    assert len(found) == len(wanted)
    check_same(found, wanted)


def gemma() -> transformers.PreTrainedTokenizerBase:
    """A SentencePiece-like vocabulary in which, as in Gemma's, tokens stand in the order of their merges."""
    backend = Backend(models.BPE(byte_fallback=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Replace(" ", "▁")
    specials = ["<pad>", "<eos>", "<bos>", "<unk>"]
    backend.train_from_iterator(
        [text for text in NASTY_TEXTS if "<" not in text for _ in range(3)],
        trainers.BpeTrainer(vocab_size=700, special_tokens=specials, limit_alphabet=120, show_progress=False),
    )
    learned = sorted(backend.get_vocab(), key=backend.token_to_id)[len(specials) :]
    tokens = [*specials, *(f"<0x{byte:02X}>" for byte in range(256)), *learned]
    vocab = {token: number for number, token in enumerate(tokens)}
    merges = [
        (token[:cut], token[cut:])
        for token in learned
        for cut in range(1, len(token))
        if token[:cut] in vocab and token[cut:] in vocab
    ]
    return transformers.GemmaTokenizer(vocab=vocab, merges=merges, add_bos_token=True)


def test_gemmas_tokenizer_is_the_one_it_was_made_from(tmp_path):
    wanted = gemma()
    found = exported(tmp_path / "gemma.gguf", wanted, None)
    assert found.encode("a")[0] == wanted.bos_token_id
    check_same(found, wanted)
