"""Tokenizers of GGUF files, with the same tokens as the tokenizers that the files were made from."""

import contextlib
import gc
import sys
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from superdraft.decoding.errors import BrokenModelError, UnsupportedModelError
from superdraft.decoding.gguf.file import GgufFile
from superdraft.decoding.text.tokenizer import byte_level_alphabet


class _Kind(IntEnum):
    """What a token is: `tokenizer.ggml.token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


_MODEL_KEY = "tokenizer.ggml.model"
_PRE_TOKENIZER_KEY = "tokenizer.ggml.pre"
_TOKENS_KEY = "tokenizer.ggml.tokens"
_TYPES_KEY = "tokenizer.ggml.token_type"
_MERGES_KEY = "tokenizer.ggml.merges"
_SCORES_KEY = "tokenizer.ggml.scores"
_NO_TEXT = frozenset({_Kind.UNKNOWN, _Kind.CONTROL, _Kind.UNUSED})
_SPECIAL_KEYS = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
}
_ADD_BOS_KEY = "tokenizer.ggml.add_bos_token"
_ADD_SPACE_KEY = "tokenizer.ggml.add_space_prefix"
_BYTE_LEVEL = "gpt2"
_SENTENCE_PIECE = "llama"
_GEMMA = ("gemma", "gemma2", "gemma3", "gemma3n")  # architectures
_BLANK = "\u2581"  # SentencePiece's sign for a space

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


class GgufTokenizer:
    """The tokenizer of a GGUF file: what is asked of transformers' tokenizers, without transformers.

    Attributes:
        backend_tokenizer: the tokenizer of the tokenizers library.
        bos_token_id, eos_token_id: the tokens that begin and end a text, or None.
        all_special_ids: tokens that are no text.
        added_tokens_decoder: id -> token, of tokens that are found in a text before it is split.
    """

    def __init__(self, backend: Backend, tokens: Sequence[str], named: Mapping[str, int]) -> None:
        self.backend_tokenizer = backend
        self._tokens = tokens
        self.bos_token_id, self.eos_token_id = named.get("bos_token"), named.get("eos_token")
        self.added_tokens_decoder: dict[int, AddedToken] = backend.get_added_tokens_decoder()
        self.all_special_ids = [i for i, token in self.added_tokens_decoder.items() if token.special]

    def __len__(self) -> int:
        return self.backend_tokenizer.get_vocab_size()

    def get_vocab(self) -> dict[str, int]:
        """Token -> id."""
        return {token: token_id for token_id, token in enumerate(self._tokens)}

    def convert_ids_to_tokens(self, token_id: int) -> str | None:
        """A token as the vocabulary spells it."""
        return self.backend_tokenizer.id_to_token(token_id)

    def encode(self, text: str, *, add_special_tokens: bool = True, **_: object) -> list[int]:
        """The tokens of a text; text that spells a special token becomes that token."""
        return self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False, **_: object) -> str:
        """The text of some tokens."""
        return self.backend_tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def batch_decode(self, texts: Iterable[Sequence[int]], *, skip_special_tokens: bool = False) -> list[str]:
        """`decode` for many texts."""
        return [self.decode(token_ids, skip_special_tokens=skip_special_tokens) for token_ids in texts]

    def without(self, specials: Container[int]) -> Backend:
        """The same tokenizer, the vocabulary shared, to which some tokens are text, and which puts nothing in front."""
        own = self.backend_tokenizer
        plain = Backend(own.model)
        for part in ("normalizer", "pre_tokenizer", "decoder"):
            if (value := getattr(own, part)) is not None:
                setattr(plain, part, value)
        plain.add_tokens([token for i, token in sorted(self.added_tokens_decoder.items()) if i not in specials])
        return plain


def load_gguf_tokenizer(file: GgufFile) -> GgufTokenizer:
    """Build the tokenizer that a GGUF file describes.

    Tokens that the file marks as control, unknown or unused are special. A kind of splitting that is unknown here is
    reported on stderr. transformers builds such tokenizers too, but takes 4 to 19 s for the models we serve, splits
    some kinds as GPT-2 does, and takes unused tokens (`[PAD151665]`) for text.

    Args:
        file: the file.

    Raises:
        UnsupportedModelError: it is of another kind than byte-level BPE and SentencePiece's BPE.
        BrokenModelError: the vocabulary, or what belongs to it, is missing.
    """
    with _uncollected():
        return _load(file)


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Without garbage collection, which would go through half a million merges again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _load(file: GgufFile) -> GgufTokenizer:
    metadata = file.metadata
    model = metadata.get(_MODEL_KEY)
    if model not in (_BYTE_LEVEL, _SENTENCE_PIECE):
        raise UnsupportedModelError(
            f"the tokenizer of {file.path} is of the kind {model!r}; kinds that are known: {_BYTE_LEVEL} (byte-level "
            f"BPE) and {_SENTENCE_PIECE} (SentencePiece's BPE)."
        )
    tokens = metadata.get(_TOKENS_KEY)
    if not isinstance(tokens, list) or not tokens:
        raise BrokenModelError(f"{file.path} has no vocabulary ({_TOKENS_KEY}).")
    kinds = metadata.get(_TYPES_KEY)
    kinds = [_Kind.NORMAL] * len(tokens) if kinds is None else kinds.tolist()
    needed = _MERGES_KEY if model == _BYTE_LEVEL else _SCORES_KEY
    if len(kinds) != len(tokens) or (needed not in metadata and _MERGES_KEY not in metadata):
        raise BrokenModelError(
            f"{file.path} has a vocabulary of {len(tokens)} tokens without {needed} or types for all."
        )
    named = {name: int(metadata[key]) for name, key in _SPECIAL_KEYS.items() if key in metadata}
    if bad := [name for name, token_id in named.items() if not 0 <= token_id < len(tokens)]:
        raise BrokenModelError(
            f"{file.path}: {bad[0]} is token {named[bad[0]]} of a vocabulary of {len(tokens)} tokens."
        )
    if model == _BYTE_LEVEL:
        tokens, backend = _byte_level(metadata, tokens, kinds, file.path)
    else:
        tokens, backend = _sentence_piece(metadata, tokens, named.get("unk_token"))
    for token_id in named.values():
        kinds[token_id] = _Kind.CONTROL
    _add_tokens(backend, tokens, kinds)
    kind = metadata.get(_PRE_TOKENIZER_KEY)
    adds_bos = metadata.get(_ADD_BOS_KEY, model == _SENTENCE_PIECE or kind in _WHOLE_WORDS)
    bos = tokens[named["bos_token"]] if "bos_token" in named and adds_bos else None
    _begin_texts(backend, bos, is_byte_level=model == _BYTE_LEVEL)
    return GgufTokenizer(backend, tokens, named)


def _byte_level(
    metadata: Mapping[str, Any], tokens: Sequence[str], kinds: Sequence[int], path: Path
) -> tuple[Sequence[str], Backend]:
    """The tokens in the alphabet of bytes, and the tokenizer."""
    alphabet = {byte: char for char, byte in byte_level_alphabet().items()}
    chars = frozenset(alphabet.values())
    tokens = [
        token if kind != _Kind.NORMAL or chars.issuperset(token) else "".join(alphabet[byte] for byte in token.encode())
        for token, kind in zip(tokens, kinds, strict=True)
    ]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    kind = metadata.get(_PRE_TOKENIZER_KEY)
    merges = [tuple(merge.split(" ", 1)) for merge in metadata[_MERGES_KEY]]
    backend = Backend(models.BPE(vocabulary, merges, ignore_merges=kind in _WHOLE_WORDS))
    if kind not in _PRE_TOKENIZERS:
        sys.stderr.write(
            f"{path.name}: how its tokenizer splits text ({kind or 'not said'}) is unknown; text is split as for "
            "GPT-2, so numbers and some words may become other tokens than those the model has learned.\n"
        )
    backend.pre_tokenizer = _PRE_TOKENIZERS.get(kind or "", _gpt2)()
    if kind in _NORMALISED:
        backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    return tokens, backend


def _sentence_piece(
    metadata: Mapping[str, Any], tokens: Sequence[str], unknown: int | None
) -> tuple[Sequence[str], Backend]:
    """The tokens in SentencePiece's spelling, and the tokenizer."""
    architecture = metadata.get("general.architecture")
    is_gemma = architecture in _GEMMA
    if is_gemma:  # its files spell runs of spaces as spaces
        tokens = [_BLANK * len(token) if token and not token.strip(" ") else token for token in tokens]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    if _MERGES_KEY in metadata:
        merges = [tuple(merge.split(" ", 1)) for merge in metadata[_MERGES_KEY]]
    else:  # Gemma's scores do not follow the order of its merges, but its tokens do
        merges = _merges(vocabulary, None if is_gemma else metadata[_SCORES_KEY].tolist())
    unk = None if unknown is None else tokens[unknown]
    backend = Backend(models.BPE(vocabulary, merges, unk_token=unk, fuse_unk=True, byte_fallback=True))
    to_text = [decoders.Replace(_BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
    adds_space = not is_gemma and metadata.get(_ADD_SPACE_KEY, True)
    if is_gemma:
        backend.normalizer = normalizers.Replace(" ", _BLANK)
        backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    elif architecture == "phi3":  # as in its own tokenizer.json: a space is put in front even of a space
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(_BLANK), normalizers.Replace(" ", _BLANK)])
    else:
        scheme = "first" if adds_space else "never"
        backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_BLANK, prepend_scheme=scheme, split=False)
    backend.decoder = decoders.Sequence([*to_text, decoders.Strip(" ", 1, 0)] if adds_space else to_text)
    return tokens, backend


def _merges(vocabulary: Mapping[str, int], scores: Sequence[float] | None) -> list[tuple[str, str]]:
    """The merges that a vocabulary implies: every cut of a token into two tokens, the best token first.

    Of one token's cuts, that with the longest first part comes first.

    Args:
        vocabulary: token -> id, in the order of the ids.
        scores: of each id, the higher the better; None: the lower the id, the better.
    """
    found = []
    for token in vocabulary if scores is None else sorted(vocabulary, key=lambda token: -scores[vocabulary[token]]):
        for cut in range(len(token) - 1, 0, -1):  # spelled out: Gemma's tokens have 1.7 million cuts
            first = token[:cut]
            if first in vocabulary:
                rest = token[cut:]
                if rest in vocabulary:
                    found.append((first, rest))
    return found


def _add_tokens(backend: Backend, tokens: Sequence[str], kinds: Sequence[int]) -> None:
    """Mark tokens that are found in a text as they are: those that are no text as special ones."""
    backend.add_special_tokens(
        [AddedToken(t, normalized=False, special=True) for t, k in zip(tokens, kinds, strict=True) if k in _NO_TEXT]
    )
    backend.add_tokens(
        [
            AddedToken(t, normalized=False, special=False)
            for t, k in zip(tokens, kinds, strict=True)
            if k == _Kind.USER_DEFINED
        ]
    )


def _begin_texts(backend: Backend, bos: str | None, *, is_byte_level: bool) -> None:
    to_offsets = [processors.ByteLevel(trim_offsets=False)] if is_byte_level else []
    template = []
    if bos is not None:
        single, pair, number = f"{bos} $A", f"{bos} $A {bos} $B", backend.token_to_id(bos)
        template = [processors.TemplateProcessing(single=single, pair=pair, special_tokens=[(bos, number)])]
    if to_offsets or template:
        backend.post_processor = processors.Sequence([*to_offsets, *template])
