"""Fill-in-the-middle: prompts for a gap in a text, from the tokenizer's own special tokens.

A prompt is in the order prefix, suffix, middle, and what stands on the cursor's own line comes *after* the middle
token, as the beginning of the answer (llama.cpp does the same). So while a line is typed, everything before that token
stays as it was and comes from the prefix cache. Such a prompt is a list of token ids, so token healing is off.

A model without these tokens gets the text before the gap alone; `cut_overlap` then keeps drafts out of the text after.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

_MIDDLES = (  # prefix, suffix, middle
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen2.5-Coder, CodeGemma, Granite 4
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder 1 and 2, Granite Code, Stable Code
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek-Coder  # noqa: RUF001
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),  # Code Llama
)
_FILE_SEPARATORS = ("<|file_sep|>", "<file_sep>", "<|file_separator|>", "<|filename|>", "<filename>")
_REPO_NAMES = ("<|repo_name|>", "<repo_name>", "<|reponame|>", "<reponame>")
_ENDS = ("<|fim_pad|>", "<fim_pad>", "<fim-pad>", "▁<EOT>", "<EOT>", "<|EOT|>", "<|endoftext|>", "<|im_end|>")

_REPO = "project\n"
_SPLICE = "\u263a"  # Code Llama's own code encodes a text behind this character to get it without a leading space
_CHARS_PER_TOKEN = 4  # in English and in code, about
_MAX_CHARS_PER_TOKEN = 16
"""Text has fewer characters a token; what is further away than this cannot fit, and is not even encoded."""


class FimTokenizer(Protocol):
    """What a prompt is made with; `superdraft.decoding.tokenizer.Tokenizer` is one."""

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """Token -> id."""

    @property
    def token_bytes(self) -> Sequence[bytes]:
        """The bytes of every token id."""

    def encode(self, text: str) -> list[int]:
        """Token ids, with those that begin a text in front."""


@dataclass(frozen=True, slots=True)
class FimTokens:
    """The special tokens of a model that fills gaps.

    Attributes:
        prefix: before the text before the gap.
        suffix: before the text after the gap.
        middle: before the answer.
        file_separator: before each file of a project, its path first; None: the model knows one file at a time.
        repo_name: before a project's name; None: projects have none.
        end_token_ids: tokens that end an answer, beside the model's end of text.
    """

    prefix: int
    suffix: int
    middle: int
    file_separator: int | None
    repo_name: int | None
    end_token_ids: frozenset[int]


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
    """A prompt for the engine: token ids, or text for a model without fill-in-the-middle tokens.

    Attributes:
        prompt: what to decode from.
        is_truncated: part of the gap's own prefix or suffix was left out.
    """

    prompt: str | list[int]
    is_truncated: bool


def find_fim_tokens(vocabulary: Mapping[str, int]) -> FimTokens | None:
    """The fill-in-the-middle tokens in a vocabulary (token -> id); None if it has none.

    A vocabulary may have them although the model was never trained on them: the chat models of the Qwen family do.
    """
    for names in _MIDDLES:
        if all(name in vocabulary for name in names):
            prefix, suffix, middle = (vocabulary[name] for name in names)
            break
    else:
        return None
    file_separator, repo_name = _first_of(_FILE_SEPARATORS, vocabulary), _first_of(_REPO_NAMES, vocabulary)
    ends = {vocabulary[name] for name in _ENDS if name in vocabulary} | {prefix, suffix, middle}
    ends |= {token for token in (file_separator, repo_name) if token is not None}
    return FimTokens(prefix, suffix, middle, file_separator, repo_name, frozenset(ends))


def _first_of(names: Sequence[str], vocabulary: Mapping[str, int]) -> int | None:
    return next((vocabulary[name] for name in names if name in vocabulary), None)


def gap_prompt(gap: Gap, fim: FimTokens | None, tokenizer: FimTokenizer, budget: Budget) -> GapPrompt:
    """The prompt for a gap, whatever the model is."""
    if fim is None:
        return prefix_prompt(gap, tokenizer, budget)
    return fim_prompt(gap, fim, tokenizer, budget)


def fim_prompt(gap: Gap, fim: FimTokens, tokenizer: FimTokenizer, budget: Budget) -> GapPrompt:
    """The prompt of a model that fills gaps.

    If the gap's text does not fit, the suffix gets a quarter of the room, or more if the prefix leaves more; the
    suffix loses its end and the prefix its beginning. Text that spells a special token becomes that token, as in any
    other prompt.
    """
    start = tokenizer.encode("")
    context = _context_ids(gap, fim, tokenizer, budget.max_context_tokens)
    room = max(0, budget.max_tokens - len(start) - len(context) - 3)
    max_chars = room * _MAX_CHARS_PER_TOKEN
    prefix, suffix_text = gap.prefix[_num_to_cut(len(gap.prefix), max_chars, max_chars) :], gap.suffix[:max_chars]
    line_start = prefix.rfind("\n") + 1
    line = _encode_inside(prefix[line_start:], tokenizer)
    lines = _encode_inside(prefix[:line_start], tokenizer)
    suffix = _encode_inside(suffix_text, tokenizer)
    num_tokens = len(lines) + len(line) + len(suffix)
    line = line[max(0, len(line) - room) :]
    suffix = suffix[: min(room - len(line), max(room // 4, room - len(line) - len(lines)))]
    lines = lines[_num_to_cut(len(lines), room - len(line) - len(suffix), room) :]
    is_truncated = num_tokens > room or len(prefix) < len(gap.prefix) or len(suffix_text) < len(gap.suffix)
    # A model without files gets the context as if it stood above, in the same file.
    before = [fim.prefix, *context] if fim.file_separator is None else [*context, fim.prefix]
    return GapPrompt([*start, *before, *lines, fim.suffix, *suffix, fim.middle, *line], is_truncated)


def _num_to_cut(length: int, room: int, whole_room: int) -> int:
    """How much to cut off a beginning to fit it in `room`, in steps of an eighth of `whole_room`.

    What is left then begins at the same place for many key presses, and its keys and values can be used again.
    """
    step = max(1, whole_room // 8)
    num_steps = -(-max(0, length - room) // step)
    return min(length, num_steps * step)


def prefix_prompt(gap: Gap, tokenizer: FimTokenizer, budget: Budget) -> GapPrompt:
    """The prompt of a model without fill-in-the-middle tokens: the context's texts, then the prefix, as one text.

    If it does not fit, the prefix loses its beginning.
    """
    files = _fitting(gap.context, lambda file: tokenizer.encode(_as_text(file)), budget.max_context_tokens)
    context = "".join(_as_text(file) for file, _ in files)
    room = budget.max_tokens * _MAX_CHARS_PER_TOKEN
    while (cut := _num_to_cut(len(gap.prefix), room, budget.max_tokens * _CHARS_PER_TOKEN)) < len(gap.prefix):
        num_tokens = len(tokenizer.encode(context + gap.prefix[cut:]))
        if num_tokens <= budget.max_tokens:
            break
        # In proportion: cutting at a token's border would change how the rest is tokenised.
        room = min(room - 1, (len(gap.prefix) - cut) * budget.max_tokens // num_tokens)
    return GapPrompt(context + gap.prefix[cut:], is_truncated=cut > 0)


def cut_overlap(draft: str, suffix: str) -> str:
    """The part of a draft before it runs into the text after the gap.

    The draft ends at the first place from which it repeats the suffix: either up to the draft's own end, or for the
    whole first line of the suffix, where the draft's line must end too. "foo)" before ")" is "foo", but "f(x) + y"
    before ")" stays, since its parenthesis closes another one.
    """
    line = _first_line(suffix)
    for start in range(len(draft)):
        rest = draft[start:]
        if suffix.startswith(rest) or (line and rest.startswith(line + "\n")):
            return draft[:start]
    return draft


def _first_line(text: str) -> str:
    """`text` up to the end of its first line that is not blank; "" if all are."""
    num_blank = len(text) - len(text.lstrip())
    return text[: (text + "\n").index("\n", num_blank)] if num_blank < len(text) else ""


def _context_ids(gap: Gap, fim: FimTokens, tokenizer: FimTokenizer, room: int) -> list[int]:
    """The gap's context and what leads over to its own file."""
    separator = fim.file_separator
    if separator is None:
        files = _fitting(gap.context, lambda file: _encode_inside(_as_text(file), tokenizer), room)
        return [token_id for _, token_ids in files for token_id in token_ids]

    def as_file(path: str, text: str) -> list[int]:
        return [separator, *_encode_inside(f"{path}\n{text}", tokenizer)]

    files = _fitting(gap.context, lambda file: as_file(file.path, file.text + "\n"), room)
    if not files:
        return []
    repo = [] if fim.repo_name is None else [fim.repo_name, *_encode_inside(_REPO, tokenizer)]
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


def _encode_inside(text: str, tokenizer: FimTokenizer) -> list[int]:
    """`text` as it stands inside a prompt: without the tokens, or the space, that some tokenizers begin a text with."""
    if not text:
        return []
    num_start = len(tokenizer.encode(""))
    token_ids = tokenizer.encode(text)[num_start:]
    if _bytes_of(token_ids, tokenizer) == text.encode():
        return token_ids
    spliced = tokenizer.encode(_SPLICE + text)[num_start:]
    for border in range(1, 6):  # a space, and the three bytes of the character
        if _bytes_of(spliced[:border], tokenizer).endswith(_SPLICE.encode()):
            return spliced[border:]
    return token_ids


def _bytes_of(token_ids: Sequence[int], tokenizer: FimTokenizer) -> bytes:
    return b"".join(tokenizer.token_bytes[token_id] for token_id in token_ids)
