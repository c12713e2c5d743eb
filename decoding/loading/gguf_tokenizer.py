"""Tokenizers of GGUF files, with the same tokens as the tokenizers that the files were made from."""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import transformers
from tokenizers import Regex, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from superdraft.decoding.loading.quiet import quiet_transformers

_MODEL_KEY = "tokenizer.ggml.model"
_PRE_TOKENIZER_KEY = "tokenizer.ggml.pre"
_TOKENS_KEY = "tokenizer.ggml.tokens"
_TYPES_KEY = "tokenizer.ggml.token_type"
_NO_TEXT = frozenset({gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.UNUSED})
_SPECIAL_KEYS = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
}
_ADD_BOS_KEY = "tokenizer.ggml.add_bos_token"
_BYTE_LEVEL = "gpt2"

# The regular expressions that these families publish in their tokenizer.json.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_ENDS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_ENDS}"
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_ENDS}"
_QWEN35 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+")


def _gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _single_digits() -> pre_tokenizers.PreTokenizer:
    """Each digit is split off first, which also keeps the spaces before a number together."""
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


def _split(*patterns: str, then: tuple[pre_tokenizers.PreTokenizer, ...] = ()) -> pre_tokenizers.PreTokenizer:
    splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in patterns]
    to_alphabet = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([*splits, *then, to_alphabet])


def _deepseek_coder() -> pre_tokenizers.PreTokenizer:
    return _split(*_DEEPSEEK_CODER, then=(pre_tokenizers.Digits(individual_digits=True),))


def _falcon() -> pre_tokenizers.PreTokenizer:
    three_digits = pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), behavior="isolated")
    digits = pre_tokenizers.Digits(individual_digits=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Punctuation("contiguous"), _gpt2(), digits, three_digits])


_PRE_TOKENIZERS: Mapping[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "mellum"), _gpt2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"), _single_digits),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), lambda: _split(_QWEN2)),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral"), lambda: _split(_LLAMA3)),
    "qwen35": lambda: _split(_QWEN35),
    "deepseek-coder": _deepseek_coder,
    "falcon": _falcon,
}
"""How text is split before byte-pair encoding, by the name in the file."""

_NORMALISED = frozenset({"qwen2", "deepseek-r1-qwen", "command-r"})
"""Tokenizers that compose characters (NFC), which GGUF files do not say."""

_WHOLE_WORDS = frozenset({"llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral"})
"""Tokenizers in which a piece that is a token stays whole, even if no merges lead to it. They also begin a text with
the token for that, unless the file says otherwise."""


def load_gguf_tokenizer(path: Path) -> transformers.PreTrainedTokenizerBase:
    """Load the tokenizer of a GGUF file, corrected where transformers does not follow the file.

    transformers splits text for some byte-level vocabularies, and in some versions for all of them, as GPT-2 does. It
    adds GPT-2's end-of-text token to vocabularies that do not have it, does not add the token that begins a text where
    the file leaves that to the kind of vocabulary, and takes unused tokens (`[PAD151665]`) for text. A kind of
    splitting that is unknown here and to transformers is reported on stderr.

    Args:
        path: the `.gguf` file.
    """
    with quiet_transformers():
        found = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    fields = gguf.GGUFReader(path).fields
    description = json.loads(found.backend_tokenizer.to_str())
    description["added_tokens"] = _marked(description["added_tokens"], found.get_vocab(), fields)
    backend = Backend.from_str(json.dumps(description))
    specials = {
        name: backend.id_to_token(int(fields[key].contents())) for name, key in _SPECIAL_KEYS.items() if key in fields
    }
    if _value(fields, _MODEL_KEY) == _BYTE_LEVEL:
        kind = _value(fields, _PRE_TOKENIZER_KEY)
        _split_as(backend, kind, path)
        _begin_texts(backend, specials.get("bos_token"), _value(fields, _ADD_BOS_KEY, kind in _WHOLE_WORDS))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=found.chat_template,
        clean_up_tokenization_spaces=False,  # else spaces before punctuation are lost when text is decoded
        **specials,
    )


def _marked(
    added: list[dict[str, Any]], vocabulary: Mapping[str, int], fields: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The added tokens that the file has, and the tokens that it marks as no text, these as special ones."""
    by_id = {token["id"]: token for token in added if token["id"] < len(fields[_TOKENS_KEY].data)}
    for token_id, kind in enumerate(_value(fields, _TYPES_KEY, ())):
        if kind in _NO_TEXT:
            content = fields[_TOKENS_KEY].contents(token_id)
            if vocabulary.get(content) == token_id:
                form = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
                by_id[token_id] = {
                    "id": token_id,
                    "content": content,
                    **form,
                    **by_id.get(token_id, {}),
                    "special": True,
                }
    return [by_id[token_id] for token_id in sorted(by_id)]


def _value(fields: Mapping[str, Any], key: str, default: Any = None) -> Any:
    return fields[key].contents() if key in fields else default


def _split_as(backend: Backend, kind: str | None, path: Path) -> None:
    """Set how a byte-level tokenizer splits text; `kind` is the name in the file."""
    pre_tokenizer = _PRE_TOKENIZERS.get(kind or "")
    if pre_tokenizer is not None:
        backend.pre_tokenizer = pre_tokenizer()
    elif isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel):  # transformers does not know it either
        sys.stderr.write(
            f"{path.name}: how its tokenizer splits text ({kind or 'not said'}) is unknown; text is split as for "
            "GPT-2, so numbers and some words may become other tokens than those the model has learned.\n"
        )
    if kind in _NORMALISED:
        backend.normalizer = normalizers.NFC()
    if kind in _WHOLE_WORDS:
        backend.model.ignore_merges = True


def _begin_texts(backend: Backend, bos: str | None, adds_bos: bool) -> None:
    to_offsets = processors.ByteLevel(trim_offsets=False)
    if bos is None or not adds_bos:
        backend.post_processor = to_offsets
        return
    template = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, backend.token_to_id(bos))]
    )
    backend.post_processor = processors.Sequence([to_offsets, template])
