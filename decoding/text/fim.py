"""Fill-in-the-middle: prompts for a gap in a text, from the tokenizer's own special tokens.

Where the cursor's line stands in the prompt is the *layout*. Models are trained on prefixes that are cut anywhere, so
the line may end the prefix (llama.cpp does this); but then every key press changes the prefix, and the text after the
cursor is run again. If the line, or its last piece, comes after the middle token instead, as the beginning of the
answer, everything before it stays as it was and comes from the prefix cache. What comes last is text whose end is
healed (`PrefixedText`).

Text from files is plain text everywhere: where it spells a control token, it does not become one.

A model without these tokens gets the text before the gap alone. `gap_cut` keeps drafts out of the text after.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from superdraft.decoding.prompt import PrefixedText

Order = Literal["psm", "spm"]
"""Prefix, suffix, middle; or suffix, prefix, middle."""

Layout = Literal["line_in_prefix", "line_after_middle", "piece_after_middle"]
"""Where the cursor's line stands: at the end of the prefix; after the middle token; or in the prefix but for its last
word with the blank before it, or its last run of blanks, which comes after the middle token."""

DEFAULT_LAYOUT: Layout = "line_after_middle"

_PSM_NAMES = (  # prefix, suffix, middle
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen2.5-Coder, CodeGemma, Granite 4
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder 1 and 2, Granite Code, Stable Code
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek-Coder  # noqa: RUF001
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),  # Code Llama
)
_SPM_NAMES = ("[PREFIX]", "[SUFFIX]")
"""Codestral's. Its vocabulary has a `[MIDDLE]` too, which no prompt contains."""

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
_CHARS_PER_TOKEN = 4  # in English and in code, about
_MAX_CHARS_PER_TOKEN = 16
"""Text has fewer characters a token; what is further away than this cannot fit, and is not even encoded."""


class FimTokenizer(Protocol):
    """What a prompt is made with; `superdraft.decoding.text.tokenizer.Tokenizer` is one."""

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """Token -> id."""

    @property
    def start_token_id(self) -> int | None:
        """The token that stands for an empty text."""

    def encode(self, text: str) -> list[int]:
        """Token ids, with those that begin a text in front."""

    def encode_inside(self, text: str) -> list[int]:
        """Token ids of plain text in the middle of a text."""


@dataclass(frozen=True, slots=True)
class FimTokens:
    """The special tokens of a model that fills gaps.

    Attributes:
        prefix: before the text before the gap.
        suffix: before the text after the gap.
        middle: before the answer; None: the answer goes on from the prefix.
        file_separator: before each file of a project, its path first; None: the model knows one file at a time.
        repo_name: before a project's name; None: projects have none.
        end_token_ids: tokens that end an answer, beside the model's end of text.
        order: which comes first, the text before the gap or the text after it. With suffix first, the text before the
            gap comes right before the answer, and all layouts are the same.
    """

    prefix: int
    suffix: int
    middle: int | None
    file_separator: int | None
    repo_name: int | None
    end_token_ids: frozenset[int]
    order: Order = "psm"


@dataclass(frozen=True, slots=True)
class ContextFile:
    """A piece of another file, or another piece of this one. `path` may be empty."""

    path: str
    text: str


@dataclass(frozen=True, slots=True)
class Gap:
    """A place in a text that is to be filled.

    Attributes:
        prefix: the text before it.
        suffix: the text after it.
        context: other texts that may help, the most useful last.
        path: of the file that the gap is in; may be empty.
    """

    prefix: str
    suffix: str = ""
    context: tuple[ContextFile, ...] = ()
    path: str = ""


@dataclass(frozen=True, slots=True)
class Budget:
    """Room for a prompt, in tokens.

    Attributes:
        max_tokens: for the whole prompt.
        max_context_tokens: for `Gap.context` in it. A fixed share, not what the gap leaves: the context comes first,
            and would otherwise change with every key press.
    """

    max_tokens: int
    max_context_tokens: int


@dataclass(frozen=True, slots=True)
class GapPrompt:
    """A prompt for the engine.

    Attributes:
        prompt: what to decode from: token ids and the text behind them, which is empty where nothing comes after the
            middle token. Text alone only for a tokenizer that has no token to start a text with.
        is_truncated: part of the gap's own prefix or suffix was left out.
    """

    prompt: str | PrefixedText
    is_truncated: bool


def find_fim_tokens(vocabulary: Mapping[str, int]) -> FimTokens | None:
    """The fill-in-the-middle tokens in a vocabulary (token -> id); None if it has none.

    A vocabulary may have them although the model was never trained on them: the chat models of the Qwen family do.
    """
    names: tuple[str, ...] | None = next(
        (names for names in (*_PSM_NAMES, _SPM_NAMES) if all(name in vocabulary for name in names)), None
    )
    if names is None:
        return None
    prefix, suffix, *middle = (vocabulary[name] for name in names)
    order: Order = "psm" if middle else "spm"
    file_separator, repo_name = _first_of(_FILE_SEPARATORS, vocabulary), _first_of(_REPO_NAMES, vocabulary)
    ends = {vocabulary[name] for name in _ENDS if name in vocabulary} | {prefix, suffix, *middle}
    ends |= {token for token in (file_separator, repo_name) if token is not None}
    return FimTokens(
        prefix, suffix, middle[0] if middle else None, file_separator, repo_name, frozenset(ends), order=order
    )


def _first_of(names: Sequence[str], vocabulary: Mapping[str, int]) -> int | None:
    return next((vocabulary[name] for name in names if name in vocabulary), None)


def gap_prompt(
    gap: Gap, fim: FimTokens | None, tokenizer: FimTokenizer, budget: Budget, layout: Layout = DEFAULT_LAYOUT
) -> GapPrompt:
    """The prompt for a gap, whatever the model is."""
    if fim is None:
        return prefix_prompt(gap, tokenizer, budget)
    return fim_prompt(gap, fim, tokenizer, budget, layout)


def fim_prompt(
    gap: Gap, fim: FimTokens, tokenizer: FimTokenizer, budget: Budget, layout: Layout = DEFAULT_LAYOUT
) -> GapPrompt:
    """The prompt of a model that fills gaps.

    If the gap's text does not fit, the suffix gets a quarter of the room, or more if the prefix leaves more; the
    suffix loses its end and the prefix its beginning.
    """
    start = tokenizer.encode("")
    context = _context_ids(gap, fim, tokenizer, budget.max_context_tokens)
    middle = [] if fim.middle is None else [fim.middle]
    room = max(0, budget.max_tokens - len(start) - len(context) - 2 - len(middle))
    max_chars = room * _MAX_CHARS_PER_TOKEN
    prefix, suffix_text = gap.prefix[_num_to_cut(len(gap.prefix), max_chars, max_chars) :], gap.suffix[:max_chars]
    text = _healed_text(prefix, fim.order, layout, room // 2, tokenizer)
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
    """The prompt's parts with the special tokens of the model.

    A model without files gets the context as if it stood above, in the same file.
    """
    if fim.file_separator is None:
        context, before = [], [*context, *before]
    if fim.order == "psm":
        assert fim.middle is not None
        return [*context, fim.prefix, *before, fim.suffix, *after, fim.middle]
    if fim.middle is None:
        return [*context, fim.suffix, *after, fim.prefix, *before]
    return [*context, fim.prefix, fim.suffix, *after, fim.middle, *before]  # StarCoder's and Code Llama's other order


def _healed_text(prefix: str, order: Order, layout: Layout, max_tokens: int, tokenizer: FimTokenizer) -> str:
    """The end of the prefix that comes last in the prompt, as text.

    Of a line that has more than `max_tokens` it is the last piece, and of such a piece its end; the rest stays in the
    prefix, which may lose its beginning.
    """

    def fits(text: str) -> bool:
        is_short = len(text) <= max_tokens * _MAX_CHARS_PER_TOKEN
        return is_short and len(tokenizer.encode_inside(text)) <= max_tokens

    if order == "spm":
        text = prefix[_last_piece_start(prefix) :]
    elif layout == "line_in_prefix":
        return ""
    else:
        text = prefix[prefix.rfind("\n") + 1 :]
    if layout == "piece_after_middle" or not fits(text):
        text = text[_last_piece_start(text) :]
    while not fits(text):
        text = text[(len(text) + 1) // 2 :]
    return text


def _last_piece_start(text: str) -> int:
    """Where the last word begins, the blank before it included, or the white space that ends the text."""
    stripped = text.rstrip()
    if len(stripped) < len(text):
        return len(stripped)
    return max(text.rfind(" "), text.rfind("\t"), text.rfind("\n") + 1, 0)


def _num_to_cut(length: int, room: int, whole_room: int) -> int:
    """How much to cut off a beginning to fit it in `room`, in steps of an eighth of `whole_room`.

    What is left then begins at the same place for many key presses, and its keys and values can be used again.
    """
    step = max(1, whole_room // 8)
    num_steps = -(-max(0, length - room) // step)
    return min(length, num_steps * step)


def prefix_prompt(gap: Gap, tokenizer: FimTokenizer, budget: Budget) -> GapPrompt:
    """The prompt of a model without fill-in-the-middle tokens: the context's texts, then the prefix, as plain text.

    If it does not fit, the prefix loses its beginning. The token that starts a text stands in front in any case.
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
        # In proportion: cutting at a token's border would change how the rest is tokenised.
        room = min(room - 1, (len(gap.prefix) - cut) * max_tokens // num_tokens)
    text = context + gap.prefix[cut:]
    return GapPrompt(PrefixedText(tuple(start), text) if start else text, is_truncated=cut > 0)


def _context_ids(gap: Gap, fim: FimTokens, tokenizer: FimTokenizer, room: int) -> list[int]:
    """The gap's context and what leads over to its own file."""
    separator = fim.file_separator
    if separator is None:
        files = _fitting(gap.context, lambda file: tokenizer.encode_inside(_as_text(file)), room)
        return [token_id for _, token_ids in files for token_id in token_ids]

    def as_file(path: str, text: str) -> list[int]:
        return [separator, *tokenizer.encode_inside(f"{path}\n{text}")]

    files = _fitting(gap.context, lambda file: as_file(file.path, file.text + "\n"), room)
    if not files:
        return []
    repo = [] if fim.repo_name is None else [fim.repo_name, *tokenizer.encode_inside(_REPO)]
    token_ids = [token_id for _, file_ids in files for token_id in file_ids]
    return [*repo, *token_ids, *as_file(gap.path, "")]


def _fitting(
    context: Sequence[ContextFile], encode: Callable[[ContextFile], list[int]], room: int
) -> list[tuple[ContextFile, list[int]]]:
    """The last files that fit into `room` tokens together, each whole, with their tokens."""
    fitting = []
    for file in reversed(context):
        if len(file.text) > room * _MAX_CHARS_PER_TOKEN:
            break
        token_ids = encode(file)
        room -= len(token_ids)
        if room < 0:
            break
        fitting.append((file, token_ids))
    return fitting[::-1]


def _as_text(file: ContextFile) -> str:
    return file.text + "\n\n"
