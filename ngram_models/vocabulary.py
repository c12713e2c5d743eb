"""The words of a KenLM model over token ids.

A token's word is its id in decimal. All end-of-text ids share KenLM's own word `</s>`. One extra word, `CUT`, ends the
training lines of token sequences that stop before the end of a text; it is never scored.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping

END_OF_SENTENCE = "</s>"
UNKNOWN = "<unk>"
CUT = "<cut>"


class WordTable(dict[int, str]):
    """Map from token ids to KenLM words, built once so that scoring needs no string formatting.

    Ids outside the vocabulary map to `<unk>`: a language model may have more output rows than its tokenizer has tokens.

    Args:
        vocabulary_size: number of ids of the tokenizer.
        end_of_text_ids: ids that end a text.
    """

    def __init__(self, vocabulary_size: int, end_of_text_ids: Collection[int]) -> None:
        super().__init__((token_id, str(token_id)) for token_id in range(vocabulary_size))
        self.update(dict.fromkeys(end_of_text_ids, END_OF_SENTENCE))

    def __missing__(self, token_id: int) -> str:
        return UNKNOWN


def split_at_end_of_text(
    token_ids: Iterable[int], end_of_text_ids: Collection[int]
) -> Iterator[tuple[list[int], bool]]:
    """Split a token sequence into texts, without their end-of-text ids.

    Yields:
        Pairs of a text's ids (never empty) and whether an end-of-text id follows. Only the last text may lack one.
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
    """SHA-256 (hex) of a tokenizer's map from tokens to ids, including added tokens.

    It depends on the map alone, not on the library version, the file format or the order of the tokens.
    """
    text = json.dumps(sorted(vocabulary.items()), ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()
