"""Tokenizer: text to token ids and back, with the exact bytes of every token.

Drafts are compared, cut at stop strings and displayed by their *bytes*, because a token may be part of a character, and
decoding a single token often loses its leading space. The table of token bytes makes this exact.
"""

import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as Backend

from superdraft.decoding.errors import UnsupportedModelError
from superdraft.decoding.text.fim import find_fim_tokens

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_CONTROL_TOKEN = re.compile(
    r"<[|｜].*[|｜]>|</?(?P<name>[^\W\d][\w-]*)>|\[/?[^\W\d][\w-]*\]"  # noqa: RUF001 (DeepSeek's bars are full-width)
)
"""Added tokens of this form are control tokens, even if the vocabulary marks them as ordinary: Qwen's `<tool_call>`,
`<start_of_image>` in Gemma's GGUF files. The tags of HTML are text."""

_TAGS = (
    "a article aside b blockquote body br button caption code col dd div dl dt em fieldset figcaption figure footer "
    "form h1 h2 h3 h4 h5 h6 head header hr html i iframe img input label legend li link main meta nav ol optgroup "
    "option p pre q s script section select small span strong style sub sup svg table tbody td textarea tfoot th thead "
    "title tr u ul"
)
_HTML = frozenset(_TAGS.split())
"""Elements of HTML whose tags a vocabulary may have as tokens (Gemma)."""

_QWEN = "<|object_ref_start|>"
"""In the vocabulary of Qwen 2.5 and later. These models need an ordinary token in front of a text. The first token
usually takes most of the attention, but their document separator never does, and with it in front no other token does
either. In Qwen2.5-Coder-0.5B, tokens 16 to 31 of code cost 4.2 nats each after the separator, 2.7 after a line break
and 2.7 with nothing in front; tokens 1 to 3 of prose 7.8, 5.5 and 7.9."""

_PART_CHARS = 4096
"""Shorter texts are encoded by the thread that asks, without letting Python's other threads run."""

_WINDOW_CHARS_PER_TOKEN, _WINDOW_GROWTH = 6, 4
"""Of a long text, this many characters per token needed are encoded first, more than English and code have. If they are
too few, because the text has longer tokens (runs of blanks, say), four times as many, and so on."""

_HEAD_CHARS = 256
"""Special tokens that a long text spells within this many characters stay in front of it."""

_MARGIN_TOKENS = 64
"""Tokens after a cut that may differ from those of the whole text, and characters to look for a blank in."""

_WORD_START = re.compile(r"(?<=\S)(?=[ \n])")

_SHORT_CHARS, _NUM_SHORT_TEXTS = 64, 32768
"""Texts whose tokens are kept: token healing asks for the same ones at every key of a word."""

_SPLICE = "\u263a"
"""Code Llama's reference code encodes a text after this character, to get the text's tokens without a leading space."""


def byte_level_alphabet() -> dict[str, int]:
    """The printable characters that stand for bytes in byte-level BPE (GPT-2): character -> byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    alphabet = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    alphabet.update({chr(256 + i): byte for i, byte in enumerate(others)})
    return alphabet


def _is_control(token: str) -> bool:
    """Whether an added token has the form of a control token."""
    match = _CONTROL_TOKEN.fullmatch(token)
    return match is not None and (match["name"] or "").lower() not in _HTML


def _decoder_types(node: Any) -> Iterable[str]:
    """The `type` of a decoder of the tokenizers library, and of the decoders inside it."""
    if isinstance(node, dict):
        if "type" in node:
            yield node["type"]
        for child in node.get("decoders", []):
            yield from _decoder_types(child)


def valid_utf8_prefix(data: bytes) -> str:
    """`data` as text, without an incomplete character at its end; other broken bytes become U+FFFD."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data":
            return data[: error.start].decode("utf-8")
        # Broken elsewhere: show the damage, but still withhold an unfinished character at the end.
        for cut in range(1, 4):
            tail = data[-cut:]
            if tail[0] >= 0xC0:
                try:
                    tail.decode("utf-8")
                except UnicodeDecodeError as tail_error:
                    if tail_error.reason == "unexpected end of data":
                        data = data[:-cut]
                break
        return data.decode("utf-8", errors="replace")


class Tokenizer:
    """A tokenizer, extended with the methods that Superposed Decoding needs.

    Args:
        hf_tokenizer: a transformers tokenizer, or a `GgufTokenizer`.
        model_vocab_size: rows of the model's output. Ids between the tokenizer's size and this number have no text
            (padding rows) and are never drafted.
        eos_token_ids: further ids that end a text, from the model's generation settings.
    """

    def __init__(
        self,
        hf_tokenizer: Any,
        model_vocab_size: int | None = None,
        eos_token_ids: Iterable[int] = (),
    ) -> None:
        self.hf_tokenizer = hf_tokenizer
        self.vocab_size = model_vocab_size or len(hf_tokenizer)
        own_eos = hf_tokenizer.eos_token_id
        # Chat models declare the end of a turn as their end of text, and also keep the base model's own.
        base_eos = self.vocabulary.get("<|endoftext|>")
        fim = find_fim_tokens(self.vocabulary)
        self._fim_ids = frozenset[int]() if fim is None else fim.end_token_ids
        ends = {own_eos, base_eos, *eos_token_ids, *self._fim_ids} - {None}
        self.eos_token_ids: frozenset[int] = frozenset(ends)
        self._encode_short = lru_cache(_NUM_SHORT_TEXTS)(self._ids_of)

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Token -> id, including added tokens."""
        return dict(self.hf_tokenizer.get_vocab())

    @cached_property
    def _special_ids(self) -> set[int]:
        """Tokens that are no text: control tokens, unknown and unused ones, whether or not they end a text."""
        added = self.hf_tokenizer.added_tokens_decoder
        # Qwen's vocabulary marks its fill-in-the-middle tokens as ordinary.
        specials = {i for i, token in added.items() if token.special or _is_control(token.content)}
        return set(self.hf_tokenizer.all_special_ids) | specials | self._fim_ids

    @cached_property
    def suppressed_token_ids(self) -> tuple[int, ...]:
        """Ids that never occur in a draft: special tokens that do not end a text, and ids without a token."""
        known = set(self.vocabulary.values())
        no_text = {i for i in range(self.vocab_size) if i not in known}
        return tuple(sorted((self._special_ids | no_text) - self.eos_token_ids))

    @cached_property
    def draftable_ids(self) -> NDArray[np.int64]:
        """All other ids, including those that end a text, shape [N]."""
        return np.setdiff1d(np.arange(self.vocab_size), np.asarray(self.suppressed_token_ids, dtype=np.int64))

    @property
    def start_token_id(self) -> int | None:
        """The token to feed for an empty prompt: the document separator, else the beginning of a text.

        For Qwen 2.5 and later it is a line break (see `_QWEN`).
        """
        separator = self.vocabulary.get("<|endoftext|>")
        if separator is not None and _QWEN in self.vocabulary:
            return self.encode_inside("\n")[0]
        candidates = (separator, self.hf_tokenizer.bos_token_id, min(self.eos_token_ids, default=None))
        return next((token_id for token_id in candidates if token_id is not None), None)

    def encode(self, text: str) -> list[int]:
        """Encode a text, with the special tokens that the model expects in front of it.

        Text that spells a special token (`<|endoftext|>`) becomes that token.
        """
        return list(self.hf_tokenizer.encode(text, verbose=False))

    def encode_inside(self, text: str) -> list[int]:
        """Encode plain text as if it stood in the middle of a longer text.

        Nothing is put in front of it, neither a special token nor SentencePiece's space. Text that spells a control
        token does not become one.
        """
        return self.encode_all_inside([text])[0]

    def encode_document(self, text: str) -> list[int]:
        """Encode plain text as if it stood at the beginning of a document, without special tokens in front."""
        return self._encode_plain([text])[0]

    def encode_end(self, text: str, min_tokens: int, *, is_plain: bool) -> tuple[list[int], list[int]] | None:
        """The last tokens of a long text, without encoding the text before them.

        They are those of the whole text, unless the text has nowhere a blank near the place where it is cut: then the
        tokens after that place may be others for the same characters.

        Args:
            text: the text.
            min_tokens: how many of the last tokens are needed.
            is_plain: whether they are those of `encode_inside` and `encode_document`, which differ only at the
                beginning of a text; else those of `encode`.

        Returns:
            The special tokens that the text's tokens begin with, and at least `min_tokens` of its last tokens. None if
            all of the text has to be encoded, because it is short.
        """
        size = _WINDOW_CHARS_PER_TOKEN * (min_tokens + _MARGIN_TOKENS)
        while size < len(text):
            cut = len(text) - size
            blank = _WORD_START.search(text, cut, cut + _MARGIN_TOKENS)
            _, token_ids = self._divided(text[blank.start() if blank else cut :], is_plain)
            if len(token_ids) >= min_tokens + _MARGIN_TOKENS:
                return self._divided(text[:_HEAD_CHARS], is_plain)[0], token_ids[_MARGIN_TOKENS:]
            size *= _WINDOW_GROWTH
        return None

    def encode_all_inside(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode_inside` for many texts."""
        encodings = self._encode_plain(texts)
        wrong = [index for index, text in enumerate(texts) if self.bytes_of(encodings[index]) != text.encode()]
        if wrong:
            spliced = self._encode_plain([_SPLICE + texts[index] for index in wrong])
            for index, ids in zip(wrong, spliced, strict=True):
                encodings[index] = self._after_splice(ids) or encodings[index]
        return encodings

    def bytes_of(self, token_ids: Iterable[int]) -> bytes:
        """The bytes of a sequence of tokens."""
        return b"".join(self.token_bytes[i] for i in token_ids)

    @cached_property
    def splits_texts(self) -> bool:
        """Whether texts are split into pieces whose tokens depend on nothing else (byte-level BPE)."""
        if self._plain_backend is None or self._plain_backend.pre_tokenizer is None:
            return False
        rule = json.loads(self._plain_backend.pre_tokenizer.__getstate__())
        rules = rule.get("pretokenizers", [rule])
        return any(one["type"] == "ByteLevel" and not one["add_prefix_space"] for one in rules) and any(
            one["type"] == "Split" or one.get("use_regex", False) for one in rules
        )

    def last_piece_start(self, text: str) -> int:
        """Index in `text` where the part begins whose tokens may change with the next typed characters.

        This part is the last piece that the tokenizer splits a text into before making tokens, or all white space at
        the end of the text. If the tokenizer does not split texts into pieces, it is the last word with the white space
        before it.
        """
        stripped = text.rstrip()
        if len(stripped) < len(text):
            return len(stripped)
        pre_tokenizer = self._plain_backend.pre_tokenizer if self._plain_backend is not None else None
        start = len(text) - len(re.split(r"\s", text)[-1])
        word = len(text[:start].rstrip())
        if pre_tokenizer is None:
            return word
        pieces = pre_tokenizer.pre_tokenize_str(text)
        return min(pieces[-1][1][0], len(text) - 1) if len(pieces) > 1 else word

    @cached_property
    def _plain_backend(self) -> Any:
        """A copy of the fast tokenizer without control tokens; None for a slow tokenizer, which is used unchanged."""
        if without := getattr(self.hf_tokenizer, "without", None):
            return without(self._special_ids)
        backend = getattr(self.hf_tokenizer, "backend_tokenizer", None)
        if backend is None:
            return None
        description = json.loads(backend.to_str())
        vocabulary = description["model"]["vocab"]
        texts = [token for token in description["added_tokens"] if token["id"] not in self._special_ids]
        if isinstance(vocabulary, dict):  # else the library numbers them anew, without the gaps of the others
            vocabulary.update({token["content"]: token["id"] for token in texts})
        description["added_tokens"] = [
            token for token in texts if isinstance(vocabulary, dict) or token["id"] < len(vocabulary)
        ]
        description["post_processor"] = None
        return Backend.from_str(json.dumps(description))

    def _encode_plain(self, texts: Sequence[str]) -> list[list[int]]:
        if self._plain_backend is None:
            options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
            return [list(self.hf_tokenizer.encode(text, **options)) for text in texts]
        # Not as a batch: the library encodes batches with threads, which compete with the model's.
        return [list(self._encode_short(text) if len(text) <= _SHORT_CHARS else self._ids_of(text)) for text in texts]

    def _ids_of(self, text: str) -> tuple[int, ...]:
        if len(text) < _PART_CHARS:
            return tuple(self._plain_backend.encode(text, add_special_tokens=False).ids)
        # Takes one thread, too, and lets Python's other threads run meanwhile.
        return tuple(self._plain_backend.encode_batch_fast([text], add_special_tokens=False)[0].ids)

    def _divided(self, text: str, is_plain: bool) -> tuple[list[int], list[int]]:
        """The special tokens that a text's tokens begin with, added by the tokenizer or spelled there; the others."""
        if is_plain:
            return [], self._encode_plain([text])[0]
        token_ids = self.encode(text)
        front = list(takewhile(lambda token_id: not self.token_bytes[token_id], token_ids))
        return front, token_ids[len(front) :]

    def _after_splice(self, token_ids: list[int]) -> list[int] | None:
        """The tokens after the splice character; None if it shares a token with the text."""
        for border in range(1, 6):  # a space, and the three bytes of the character
            if self.bytes_of(token_ids[:border]).endswith(_SPLICE.encode()):
                return token_ids[border:]
        return None

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of `token_ids` in the middle of a longer text, without special tokens."""
        return valid_utf8_prefix(b"".join(self.token_bytes[i] for i in token_ids))

    def token_text(self, token_id: int) -> str:
        """One token for display: its text, or its name if it is special; broken characters appear as U+FFFD."""
        if token_id in self._special_ids:
            return str(self.hf_tokenizer.convert_ids_to_tokens(token_id))
        return self.token_bytes[token_id].decode("utf-8", errors="replace")

    @cached_property
    def token_bytes(self) -> tuple[bytes, ...]:
        """The bytes that each id adds to a text, shape [vocab_size]; empty for special tokens and padding ids."""
        table = [b""] * max(self.vocab_size, max(self.vocabulary.values()) + 1)
        to_bytes = self._token_to_bytes()
        added = self.hf_tokenizer.added_tokens_decoder
        for token, token_id in self.vocabulary.items():
            if token_id in self._special_ids:
                continue
            table[token_id] = token.encode() if token_id in added else to_bytes(token)
        return tuple(table)

    def _token_to_bytes(self) -> Any:
        backend = getattr(self.hf_tokenizer, "backend_tokenizer", None)
        decoder = backend.decoder if backend is not None else None
        types = set() if decoder is None else set(_decoder_types(json.loads(decoder.__getstate__())))
        if "ByteLevel" in types:
            alphabet = byte_level_alphabet()
            return lambda token: bytes(alphabet[char] for char in token)
        if types & {"ByteFallback", "Metaspace", "Replace"} or backend is None:
            return _sentencepiece_bytes
        raise UnsupportedModelError(
            f"The tokenizer's decoder ({', '.join(sorted(types)) or 'none'}) is neither byte-level nor SentencePiece-"
            "like, so the exact text of its tokens is unknown. Use a model whose tokenizer is one of these kinds."
        )


def _sentencepiece_bytes(token: str) -> bytes:
    match = _BYTE_TOKEN.fullmatch(token) if token[:1] == "<" else None
    return bytes([int(match[1], 16)]) if match else token.replace("▁", " ").encode()
