r"""Bounds of a long text's tokens, without encoding all of it.

A text may be cut where the tokenizer splits it anyway before it makes tokens. Tokenizers split by a regular expression,
applied from left to right. For the expressions listed here, a space (U+0020) that follows something other than white
space always begins a new piece, and nothing depends on the text before a piece. So both sides of the cut have the same
tokens alone as together. If each digit is a piece of its own, the places around digits are as good, except after white
space, which is split differently at the end of a text (`\s+(?!\S)`).
"""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Description = dict[str, Any]
"""The JSON form of a tokenizer of the tokenizers library (`Tokenizer.to_str`)."""

_AT_SPACE = r"(?<=\S)(?= )"
_AT_WHITE_SPACE = r"(?<=\S)(?=[ \t\r\n])"
"""GPT-2's expression, which `ByteLevel` uses, joins no white space to what is before it."""
_AT_DIGIT = r"(?<=[0-9])|(?<=\S)(?=[0-9])"

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CUTS_OF_REGEX = {_WORDS % r"\p{N}": f"{_AT_SPACE}|{_AT_DIGIT}", _WORDS % r"\p{N}{1,3}": _AT_SPACE}
"""Qwen 2 and later; Llama 3."""

_FIRST_WINDOW = 256


@dataclass(frozen=True, slots=True)
class LongTextRules:
    """What a tokenizer's description says about long texts.

    Attributes:
        cuts: `safe_cuts`.
        max_token_bytes: `max_token_bytes`.
        dropped_bytes: `bytes_without_token`.
        is_nfc: whether the tokenizer brings a text into Unicode's normal form C first.
    """

    cuts: re.Pattern[str] | None = None
    max_token_bytes: int | None = None
    dropped_bytes: bytes = b""
    is_nfc: bool = False

    @classmethod
    def of(cls, description: Description, alphabet: Mapping[str, int]) -> "LongTextRules":
        """The rules of a tokenizer; `alphabet` has the characters that stand for bytes in byte-level BPE."""
        return cls(
            safe_cuts(description),
            max_token_bytes(description),
            bytes_without_token(description, alphabet),
            any(step["type"] == "NFC" for step in _steps(description["normalizer"], "normalizers")),
        )

    def can_cut(self, text: str) -> bool:
        """Whether cuts of this text are safe."""
        return self.cuts is not None and (not self.is_nfc or unicodedata.is_normalized("NFC", text))

    def fewest_tokens(self, text: str) -> int:
        """A lower bound of a text's number of tokens, from the length of the longest token; 0 if that is unknown."""
        if self.max_token_bytes is None:
            return 0
        if self.is_nfc:
            text = unicodedata.normalize("NFC", text)
        return -(-len(text.encode().translate(None, self.dropped_bytes)) // self.max_token_bytes)


def safe_cuts(description: Description) -> re.Pattern[str] | None:
    """Pattern of the places where a text may be cut without a change of its tokens; None if none are known.

    Of a tokenizer that normalises to NFC, it holds for texts in NFC.
    """
    pattern = _cuts_of_pre_tokenizer(description["pre_tokenizer"])
    if pattern is None or description["model"].get("dropout") or not _keeps_added_tokens_apart(description):
        return None
    if {step["type"] for step in _steps(description["normalizer"], "normalizers")} - {"NFC"}:
        return None
    cuts = re.compile(pattern)
    for added in description["added_tokens"]:
        if any(0 < cut.start() < len(added["content"]) for cut in cuts.finditer(added["content"])):
            return None
    return cuts


def last_cut(text: str, cuts: re.Pattern[str], end: int) -> int:
    """The last safe cut at or before `end`; 0 if there is none."""
    window, stop = _FIRST_WINDOW, end
    while stop > 0:
        start = max(0, stop - window)
        # One more character, which the pattern looks at.
        places = [cut.start() for cut in cuts.finditer(text, start, min(len(text), stop + 1)) if cut.start() <= stop]
        if places:
            return places[-1]
        stop, window = start, window * 2
    return 0


def max_token_bytes(description: Description) -> int | None:
    """The most UTF-8 bytes of a normalised text that one token stands for; None if there may be no limit.

    Bytes that have no token at all do not count (`bytes_without_token`). There is no limit if the tokenizer drops parts
    of a text, or may replace a run of unknown characters by one token.
    """
    model = description["model"]
    if model["type"] != "BPE" or not _keeps_added_tokens_apart(description):
        return None
    splitters = _steps(description["pre_tokenizer"], "pretokenizers")
    normalizers = _steps(description["normalizer"], "normalizers")
    if not (all(map(_keeps_text, normalizers)) and all(map(_keeps_pieces, splitters))):
        return None
    vocabulary = model["vocab"]
    # An added token may match one character that the normalizer put in front of it, of three bytes at most.
    added = (len(token["content"].encode()) + 3 for token in description["added_tokens"])
    if _is_byte_level(description):
        return max(*map(len, vocabulary), *added) if model["unk_token"] is None else None
    if not model["byte_fallback"] or not vocabulary.keys() >= {f"<0x{byte:02X}>" for byte in range(256)}:
        return None
    return max(*(len(token.encode()) for token in vocabulary), *added)


def bytes_without_token(description: Description, alphabet: Mapping[str, int]) -> bytes:
    """The bytes that byte-level BPE drops from a text because its vocabulary lacks them.

    Args:
        description: the tokenizer.
        alphabet: the characters that stand for bytes in byte-level BPE.
    """
    if not _is_byte_level(description):
        return b""
    return bytes(byte for char, byte in alphabet.items() if char not in description["model"]["vocab"])


def _steps(node: Description | None, children: str) -> list[Description]:
    """The steps of a normalizer or a pre-tokenizer, in order."""
    if node is None:
        return []
    return [step for child in node[children] for step in _steps(child, children)] if children in node else [node]


def _keeps_added_tokens_apart(description: Description) -> bool:
    """Whether no added token takes in white space around it, or depends on the characters next to it."""
    return not any(token[key] for token in description["added_tokens"] for key in ("lstrip", "rstrip", "single_word"))


def _keeps_text(normalizer: Description) -> bool:
    """Whether the text has no fewer bytes afterwards; the bytes of NFC are counted after it."""
    if normalizer["type"] == "Replace":
        return bool(normalizer["pattern"] == {"String": " "} and normalizer["content"] == "▁")
    return normalizer["type"] in ("NFC", "Prepend")


def _keeps_pieces(splitter: Description) -> bool:
    """Whether a pre-tokenizer drops nothing."""
    return splitter["type"] in ("ByteLevel", "Digits", "Metaspace", "Split") and splitter.get("behavior") != "Removed"


def _is_byte_level(description: Description) -> bool:
    return any(step["type"] == "ByteLevel" for step in _steps(description["pre_tokenizer"], "pretokenizers"))


def _cuts_of_pre_tokenizer(pre_tokenizer: Description | None) -> str | None:
    match _steps(pre_tokenizer, "pretokenizers"):
        case [{"type": "ByteLevel", "use_regex": True, "add_prefix_space": False}]:
            return _AT_WHITE_SPACE
        case [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "use_regex": True, "add_prefix_space": False},
        ]:
            return f"{_AT_WHITE_SPACE}|{_AT_DIGIT}"
        case [
            {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "use_regex": False, "add_prefix_space": False},
        ]:
            return _CUTS_OF_REGEX.get(regex)
    return None
