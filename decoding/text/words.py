"""Word characters and word boundaries, in any script."""

import unicodedata

# Scripts without spaces between words: Thai and Lao, Burmese, Khmer, Chinese characters and Japanese kana.
_UNSPACED = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x2E80, 0x312F),
    (0x31A0, 0x31BF),
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F),
    (0x20000, 0x3FFFF),
)
_JOINERS = "\u200c\u200d"
"""Zero-width non-joiner and joiner, which shape letters inside a word (Persian, Hindi)."""


def is_word_character(char: str) -> bool:
    """Whether `char` can be part of a longer word: letters, digits, underscore, and marks on letters.

    A character of a script without spaces (Chinese, Japanese, Thai, ...) counts as a word of its own.
    """
    if any(low <= ord(char) <= high for low, high in _UNSPACED):
        return False
    is_mark = unicodedata.category(char) in ("Mn", "Mc") and not "\ufe00" <= char <= "\ufe0f"  # emoji variants
    return char.isalnum() or char == "_" or char in _JOINERS or is_mark


def last_word_start(text: str, connectors: str) -> int:
    """Index in `text` where the word at its very end begins; `len(text)` if it does not end in a word.

    Args:
        text: any text.
        connectors: characters that belong to a word if they directly follow a word character, like the apostrophe in
            "don't".
    """
    start = len(text)
    while start > 0:
        char = text[start - 1]
        if not is_word_character(char) and not (
            char in connectors and start > 1 and is_word_character(text[start - 2])
        ):
            break
        start -= 1
    return start
