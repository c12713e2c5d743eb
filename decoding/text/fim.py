"""Fill-in-the-middle (FIM): prompts for a gap in a text, built with the tokenizer's own special tokens.

The cursor's line follows the middle token, as the beginning of the answer. If it ended the prefix, as in llama.cpp,
every key press would change the prefix, and the text after the cursor would have to be run again. Now everything before
the line comes from the prefix cache. The line is a text whose end is healed (`PrefixedText`).

Text from files is always plain text: if it spells a control token, it does not become one.

A model without these tokens gets only the text before the gap. `gap_cut` keeps drafts from repeating the text after it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from superdraft.decoding.prompt import PrefixedText

_PSM_NAMES = (  # prefix, suffix, middle
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen2.5-Coder, CodeGemma, Granite 4
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder 1 and 2, Granite Code, Stable Code
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek-Coder  # noqa: RUF001
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),  # Code Llama
)
_SPM_NAMES = ("[PREFIX]", "[SUFFIX]")
"""Codestral. Its vocabulary also has a `[MIDDLE]`, which no prompt contains."""

_FILE_SEPARATORS = ("<|file_sep|>", "<file_sep>", "<|file_separator|>", "<|filename|>", "<filename>")
_REPO_NAMES = ("<|repo_name|>", "<repo_name>", "<|reponame|>", "<reponame>")
_ENDS = (
    "<|fim_pad|>",
    "<fim_pad>",
    "<fim-pad>",
    "▁<EOT>",
    "<EOT>",
    "<|EOT|>",
    "<|endoftext|>",
    "<|im_end|>",
    "[MIDDLE]",
)

_REPO = "project\n"
_MAX_UNNAMED_CHARS = 300
"""Up to this length of the text around the gap, the model gets the file's name. With Qwen2.5-Coder-0.5B, the name
made the best draft better at 2 of 26 places near the top of a file and worse at none; in the middle, it made the draft
better at none of 23 places and worse at 3."""

_CHARS_PER_TOKEN = 4  # approximately, in English and in code
_MAX_CHARS_PER_TOKEN = 16
"""Text further from the gap than this, per token of room, is not even encoded. Nearly all text has far fewer; of long
runs of blanks, which may have more, some are left out that would have fitted."""


class FimTokenizer(Protocol):
    """Tokenizer interface needed to build prompts; `superdraft.decoding.text.tokenizer.Tokenizer` implements it."""

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """Token -> id."""

    @property
    def start_token_id(self) -> int | None:
        """The token to feed for an empty text."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with the special tokens that the model expects in front."""

    def encode_inside(self, text: str) -> list[int]:
        """Token ids of plain text in the middle of a longer text."""


@dataclass(frozen=True, slots=True)
class FimTokens:
    """The special tokens of a fill-in-the-middle model.

    Attributes:
        prefix: precedes the text before the gap.
        suffix: precedes the text after the gap.
        middle: precedes the answer; None: the suffix comes first, and the answer continues the prefix.
        file_separator: precedes each file of a project, which begins with its path; None: the model has no such token.
        repo_name: precedes a project's name; None: the model has no such token.
        end_token_ids: tokens that end an answer, in addition to the model's end of text.
    """

    prefix: int
    suffix: int
    middle: int | None
    file_separator: int | None
    repo_name: int | None
    end_token_ids: frozenset[int]


@dataclass(frozen=True, slots=True)
class ContextFile:
    """A piece of another file, or another piece of the same file. `path` may be empty."""

    path: str
    text: str


@dataclass(frozen=True, slots=True)
class Gap:
    """A gap in a text, to be filled.

    Attributes:
        prefix: the text before it.
        suffix: the text after it.
        context: other texts that may help, the most useful last.
        path: path of the file with the gap; may be empty.
    """

    prefix: str
    suffix: str = ""
    context: tuple[ContextFile, ...] = ()
    path: str = ""


@dataclass(frozen=True, slots=True)
class Budget:
    """Maximum length of a prompt, in tokens.

    Attributes:
        max_tokens: for the whole prompt.
        max_context_tokens: for `Gap.context` in it. It does not depend on the gap's length, because the context comes
            first in the prompt and would otherwise change with every key press.
    """

    max_tokens: int
    max_context_tokens: int


@dataclass(frozen=True, slots=True)
class GapPrompt:
    """A prompt for the engine.

    Attributes:
        prompt: token ids and the text after them, which is empty if nothing follows the middle token. Only for a
            tokenizer without a token to start a text is it a plain text.
        is_truncated: part of the gap's own prefix or suffix was left out.
    """

    prompt: str | PrefixedText
    is_truncated: bool


def find_fim_tokens(vocabulary: Mapping[str, int]) -> FimTokens | None:
    """The fill-in-the-middle tokens in a vocabulary (token -> id); None if it has none.

    A vocabulary may have them although the model was not trained with them, as in the chat models of the Qwen family.
    """
    names: tuple[str, ...] | None = next(
        (names for names in (*_PSM_NAMES, _SPM_NAMES) if all(name in vocabulary for name in names)), None
    )
    if names is None:
        return None
    prefix, suffix, *middle = (vocabulary[name] for name in names)
    file_separator, repo_name = _first_of(_FILE_SEPARATORS, vocabulary), _first_of(_REPO_NAMES, vocabulary)
    ends = {vocabulary[name] for name in _ENDS if name in vocabulary} | {prefix, suffix, *middle}
    ends |= {token for token in (file_separator, repo_name) if token is not None}
    return FimTokens(prefix, suffix, middle[0] if middle else None, file_separator, repo_name, frozenset(ends))


def _first_of(names: Sequence[str], vocabulary: Mapping[str, int]) -> int | None:
    return next((vocabulary[name] for name in names if name in vocabulary), None)


def gap_prompt(gap: Gap, fim: FimTokens | None, tokenizer: FimTokenizer, budget: Budget) -> GapPrompt:
    """The prompt for a gap, for a model with (`fim`) or without fill-in-the-middle tokens."""
    if fim is None:
        return prefix_prompt(gap, tokenizer, budget)
    return fim_prompt(gap, fim, tokenizer, budget)


def fim_prompt(gap: Gap, fim: FimTokens, tokenizer: FimTokenizer, budget: Budget) -> GapPrompt:
    """The prompt for a fill-in-the-middle model.

    If the gap's text does not fit, the suffix gets a quarter of the room, or more if the prefix does not need the rest.
    The suffix loses its end and the prefix its beginning.
    """
    start = tokenizer.encode("")
    context = _context_ids(gap, fim, tokenizer, budget.max_context_tokens)
    middle = [] if fim.middle is None else [fim.middle]
    room = max(0, budget.max_tokens - len(start) - len(context) - 2 - len(middle))
    max_chars = room * _MAX_CHARS_PER_TOKEN
    prefix, suffix_text = gap.prefix[_num_to_cut(len(gap.prefix), max_chars, max_chars) :], gap.suffix[:max_chars]
    text = _healed_text(prefix, fim, room // 2, tokenizer)
    num_text = len(tokenizer.encode_inside(text))
    before = tokenizer.encode_inside(prefix[: len(prefix) - len(text)])
    after = tokenizer.encode_inside(suffix_text)
    is_truncated = len(before) + num_text + len(after) > room
    if is_truncated:
        step = max(1, room // 8)
        num_left = max(0, room - num_text - len(before)) // step * step
        after = after[: min(room - num_text, max(room // 4, num_left))]
        before = before[_num_to_cut(len(before), room - num_text - len(after), room) :]
    is_truncated |= len(prefix) < len(gap.prefix) or len(suffix_text) < len(gap.suffix)
    return GapPrompt(PrefixedText((*start, *_in_order(fim, context, before, after)), text), is_truncated)


def _in_order(fim: FimTokens, context: list[int], before: list[int], after: list[int]) -> list[int]:
    """Join the parts of the prompt with the model's special tokens.

    Without a file separator, the context is placed above the prefix, as if it were in the same file.
    """
    if fim.file_separator is None:
        context, before = [], [*context, *before]
    if fim.middle is None:
        return [*context, fim.suffix, *after, fim.prefix, *before]
    return [*context, fim.prefix, *before, fim.suffix, *after, fim.middle]


def _healed_text(prefix: str, fim: FimTokens, max_tokens: int, tokenizer: FimTokenizer) -> str:
    """The end of the prefix that comes last in the prompt, as text.

    If a line has more than `max_tokens`, or the prefix precedes the answer anyway, this is only the last piece; if the
    piece has more, only the end of the piece. The rest stays in the prefix, which may lose its beginning.
    """

    def fits(text: str) -> bool:
        is_short = len(text) <= max_tokens * _MAX_CHARS_PER_TOKEN
        return is_short and len(tokenizer.encode_inside(text)) <= max_tokens

    text = prefix if fim.middle is None else prefix[prefix.rfind("\n") + 1 :]
    if fim.middle is None or not fits(text):
        text = text[_last_piece_start(text) :]
    while not fits(text):
        text = text[(len(text) + 1) // 2 :]
    return text


def _last_piece_start(text: str) -> int:
    """Index where the last word begins, including the blank before it, or the white space that ends the text."""
    stripped = text.rstrip()
    if len(stripped) < len(text):
        return len(stripped)
    return max(text.rfind(" "), text.rfind("\t"), text.rfind("\n") + 1, 0)


def _num_to_cut(length: int, room: int, whole_room: int) -> int:
    """How much to cut off the beginning to fit the rest in `room`, in steps of an eighth of `whole_room`.

    The rest then begins at the same place for many key presses, so its keys and values can be reused.
    """
    step = max(1, whole_room // 8)
    num_steps = -(-max(0, length - room) // step)
    return min(length, num_steps * step)


def prefix_prompt(gap: Gap, tokenizer: FimTokenizer, budget: Budget) -> GapPrompt:
    """The prompt for a model without fill-in-the-middle tokens: the context's texts, then the prefix, as plain text.

    If it does not fit, the prefix loses its beginning. It always begins with the token that starts a text.
    """
    start = tokenizer.encode("")
    if not start and tokenizer.start_token_id is not None:
        start = [tokenizer.start_token_id]
    max_tokens = max(0, budget.max_tokens - len(start))
    files = _fitting(gap.context, lambda file: tokenizer.encode_inside(_as_text(file)), budget.max_context_tokens)
    context = "".join(_as_text(file) for file, _ in files)
    room = max_tokens * _MAX_CHARS_PER_TOKEN
    while (cut := _num_to_cut(len(gap.prefix), room, max_tokens * _CHARS_PER_TOKEN)) < len(gap.prefix):
        num_tokens = len(tokenizer.encode_inside(context + gap.prefix[cut:]))
        if num_tokens <= max_tokens:
            break
        # Estimated in proportion to characters, as cutting between tokens would change how the rest is tokenised.
        room = min(room - 1, (len(gap.prefix) - cut) * max_tokens // num_tokens)
    text = context + gap.prefix[cut:]
    return GapPrompt(PrefixedText(tuple(start), text) if start else text, is_truncated=cut > 0)


def _context_ids(gap: Gap, fim: FimTokens, tokenizer: FimTokenizer, room: int) -> list[int]:
    """The tokens of the gap's context, and of the header of the gap's own file."""
    separator = fim.file_separator
    if separator is None:
        files = _fitting(gap.context, lambda file: tokenizer.encode_inside(_as_text(file)), room)
        return [token_id for _, token_ids in files for token_id in token_ids]

    def as_file(path: str, text: str) -> list[int]:
        return [separator, *tokenizer.encode_inside(f"{path}\n{text}")]

    files = _fitting(gap.context, lambda file: as_file(file.path, file.text + "\n"), room)
    if not files and not (gap.path and len(gap.prefix) + len(gap.suffix) <= _MAX_UNNAMED_CHARS):
        return []
    repo = [] if fim.repo_name is None else [fim.repo_name, *tokenizer.encode_inside(_REPO)]
    token_ids = [token_id for _, file_ids in files for token_id in file_ids]
    return [*repo, *token_ids, *as_file(gap.path, "")]


def _fitting(
    context: Sequence[ContextFile], encode: Callable[[ContextFile], list[int]], room: int
) -> list[tuple[ContextFile, list[int]]]:
    """The last files that together fit into `room` tokens, each complete and with its path, with their tokens."""
    fitting = []
    for file in reversed(context):
        if len(file.path) + len(file.text) > room * _MAX_CHARS_PER_TOKEN:
            break
        token_ids = encode(file)
        room -= len(token_ids)
        if room < 0:
            break
        fitting.append((file, token_ids))
    return fitting[::-1]


def _as_text(file: ContextFile) -> str:
    return file.text + "\n\n"
