"""Token ids as the words of a KenLM model.

A token's word is its id in decimals. Every end-of-text id is KenLM's own `</s>`. One more word, `CUT`, stands in the
training lines of token sequences that stop without an end of text; nothing ever asks for its score.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping

BEGIN_OF_SENTENCE = "<s>"
END_OF_SENTENCE = "</s>"
UNKNOWN = "<unk>"
CUT = "<cut>"


class WordTable(dict[int, str]):
    """Token id -> KenLM word, made once so that no id is turned into text while scoring.

    Ids outside the vocabulary are `<unk>`: a language model's output may have more rows than its tokenizer has tokens.

    Args:
        vocabulary_size: number of ids of the tokenizer.
        end_of_text_ids: the ids that end a text.
    """

    def __init__(self, vocabulary_size: int, end_of_text_ids: Collection[int]) -> None:
        super().__init__((token_id, str(token_id)) for token_id in range(vocabulary_size))
        self.update(dict.fromkeys(end_of_text_ids, END_OF_SENTENCE))

    def __missing__(self, token_id: int) -> str:
        return UNKNOWN


def split_at_end_of_text(
    token_ids: Iterable[int], end_of_text_ids: Collection[int]
) -> Iterable[tuple[list[int], bool]]:
    """The texts of a token sequence, without their end-of-text ids.

    Returns:
        Pairs of a text's ids (never empty) and whether the text ends there. Only the last may be cut off.
    """
    text: list[int] = []
    for token_id in token_ids:
        if token_id not in end_of_text_ids:
            text.append(token_id)
        elif text:
            yield text, True
            text = []
    if text:
        yield text, False


def tokenizer_fingerprint(vocabulary: Mapping[str, int]) -> str:
    """SHA-256 (hex) of a tokenizer's token -> id map, added tokens included.

    It depends on the map alone, so it is the same for every library version, file format and order of the tokens.
    """
    text = json.dumps(sorted(vocabulary.items()), ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()
