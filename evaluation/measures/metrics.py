"""Quality measures of drafts: pure functions over texts and numbers.

*Words* are separated by white space. Punctuation and case matter, except in answers to questions.
"""

import math
import re
import string
from collections import Counter
from collections.abc import Sequence

MAX_BLEU_ORDER = 4
START_WORDS = 3
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_SMALLEST_COUNT = 0.1


def words_right(draft: str, continuation: str) -> int:
    """Length, in words, of the longest right beginning of a draft.

    Args:
        draft: the suggestion after the prompt's last character.
        continuation: the right continuation. If only one of the two begins with white space, the draft joins two words
            or splits one, and none of it is right.
    """
    if draft[:1].isspace() != continuation[:1].isspace():
        return 0
    count = 0
    for ours, theirs in zip(draft.split(), continuation.split(), strict=False):
        if ours != theirs:
            break
        count += 1
    return count


def most_words_right(drafts: Sequence[str], continuation: str) -> int:
    """`words_right` of the best draft; 0 without drafts."""
    return max((words_right(draft, continuation) for draft in drafts), default=0)


def exact_match(drafts: Sequence[str], continuation: str, num_words: int) -> bool | None:
    """ExactMatch@N any-of-k: whether any draft's first N words are those of the continuation.

    None if the continuation has fewer words.
    """
    if len(continuation.split()) < num_words:
        return None
    return most_words_right(drafts, continuation) >= num_words


def mean(values: Sequence[float]) -> float:
    """The mean; NaN without values."""
    return math.fsum(values) / len(values) if values else math.nan


def perplexity(logprobs: Sequence[float]) -> float:
    """Exp of the mean negative log-probability (natural log) of a draft's tokens; NaN for an empty draft."""
    return math.exp(-math.fsum(logprobs) / len(logprobs)) if logprobs else math.nan


def distinct_starts(drafts: Sequence[str]) -> int:
    """The number of different first three words among the drafts; drafts without words do not count."""
    return len({tuple(words[:START_WORDS]) for draft in drafts if (words := draft.split())})


def self_bleu(drafts: Sequence[str]) -> float:
    """Mean BLEU of each draft against all others (Zhu et al., 2018); high if drafts resemble one another.

    NaN for fewer than two drafts.
    """
    if len(drafts) < 2:
        return math.nan
    split = [draft.split() for draft in drafts]
    return math.fsum(bleu(words, split[:i] + split[i + 1 :]) for i, words in enumerate(split)) / len(split)


def bleu(hypothesis: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Sentence BLEU (Papineni et al., 2002) with uniform weights, 0 to 1.

    An order without any match counts as 0.1 matches (Chen and Cherry, 2014, method 1). Because drafts are short, orders
    that the hypothesis is too short for are left out.
    """
    orders = range(1, min(MAX_BLEU_ORDER, len(hypothesis)) + 1)
    if not orders or not references:
        return 0.0
    log_precision = 0.0
    for order in orders:
        counts = _ngrams(hypothesis, order)
        most: Counter[tuple[str, ...]] = Counter()
        for reference in references:
            most |= _ngrams(reference, order)
        matches = (counts & most).total()
        if order == 1 and not matches:
            return 0.0
        log_precision += math.log((matches or _SMALLEST_COUNT) / counts.total()) / len(orders)
    # The reference closest in length; of two equally close ones, the shorter.
    closest = min((len(reference) for reference in references), key=lambda n: (abs(n - len(hypothesis)), n))
    brevity = min(0.0, 1 - closest / len(hypothesis))
    return math.exp(brevity + log_precision)


def _ngrams(words: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + order]) for i in range(len(words) - order + 1))


def normalise_answer(text: str) -> str:
    """A text in lower case, without punctuation, articles and extra white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def contains_answer(draft: str, answers: Sequence[str]) -> bool:
    """Whether a draft contains one of the answers, as whole words, after normalisation."""
    haystack = f" {normalise_answer(draft)} "
    return any(f" {answer} " in haystack for answer in map(normalise_answer, answers) if answer)


def precision_at(drafts: Sequence[str], answers: Sequence[str], num_drafts: int) -> bool:
    """P@n of one question: whether any of the first n drafts contains an answer."""
    return any(contains_answer(draft, answers) for draft in drafts[:num_drafts])
