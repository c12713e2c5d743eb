"""The answer to a request, and snapshots on the way: drafts ranked, trimmed, made distinct, verified."""

import re
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace

from superdraft.decoding.engine.sequence import Branch, Sequence
from superdraft.decoding.engine.verification import Verification, verify
from superdraft.decoding.method.draft_set import Draft, DraftSet
from superdraft.decoding.method.ranking import rank
from superdraft.decoding.method.selection import SelectionRule
from superdraft.decoding.model.runner import ModelRunner
from superdraft.decoding.outputs import (
    DraftOutput,
    DraftSnapshot,
    Extent,
    FinishReason,
    GenerationOutput,
    Replaced,
    Snapshot,
    Timings,
    TokenLogprob,
    Usage,
    extents_within,
)
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.text.tokenizer import Tokenizer, valid_utf8_prefix
from superdraft.decoding.text.trimming import stable_prefix, tokens_within, trim_text

_LAST_WORD = re.compile(r"\s*\S*$")


@dataclass(frozen=True, slots=True)
class _Shown:
    """A draft as it is shown: ranked and trimmed. Fields as in `DraftOutput`; `stem_ids` as in `Draft`."""

    score: float
    text: str
    token_ids: tuple[int, ...]
    pieces: tuple[bytes, ...]
    token_logprobs: tuple[float, ...]
    finish_reason: FinishReason
    stem_ids: tuple[int, ...]
    replaced: bytes
    extents: tuple[Extent, ...]


def all_drafts(sequence: Sequence) -> DraftSet:
    """The drafts of all branches. Those on a branch that became improbable get that finish reason."""
    max_tokens = sequence.params.max_tokens
    unsure_branches = [branch for branch in sequence.branches if branch.is_unsure and branch.num_steps < max_tokens]
    alive = [draft for branch in sequence.branches if branch not in unsure_branches for draft in branch.drafts.alive]
    unsure = [replace(draft, finish_reason="improbable") for branch in unsure_branches for draft in branch.drafts.alive]
    finished = (draft for branch in sequence.branches for draft in branch.drafts.finished)
    return DraftSet(tuple(alive), (*unsure, *finished))


def snapshot(sequence: Sequence) -> Snapshot:
    """The drafts of a request between two steps."""
    params = sequence.params
    drafts = all_drafts(sequence)
    rule = params.ranking_rule
    ranked = rank(drafts, params.num_shown, rule)
    return Snapshot(
        num_steps=max(branch.num_steps for branch in sequence.branches),
        drafts=tuple(
            DraftSnapshot(
                valid_utf8_prefix(draft.text), rule.score(draft), Replaced.of(draft.replaced), rule.extents(draft)
            )
            for draft in ranked
        ),
        stable_text=_stable_text(sequence),
        rows_by_depth=tuple(sequence.rows_by_depth),
    )


def _whole_draft(sequence: Sequence) -> Draft | None:
    """The draft that is the first of the answer because it is spared (`whole_best`); None: that is not certain yet."""
    first = sequence.branches[0].drafts
    if not sequence.params.whole_best or len(sequence.branches) == 1 or len(first.alive) > 1:
        return None
    return first.alive[0] if first.alive else max(first.finished, key=lambda draft: len(draft.token_ids), default=None)


def _stable_text(sequence: Sequence) -> str:
    """The beginning of the first draft, without any end that trimming or a stop string may still remove.

    As long as it is open which draft will be the first, the common beginning of all; none if `min_score` may leave out
    all drafts, or if one replaces what was typed.
    """
    params, whole = sequence.params, _whole_draft(sequence)
    if params.min_score is not None:
        return ""
    if whole is not None:
        alive = [] if whole.finish_reason else [whole]
        finished = [whole] if whole.finish_reason else []
    else:
        alive = [draft for branch in sequence.branches for draft in branch.drafts.alive]
        finished = [draft for branch in sequence.branches for draft in branch.drafts.finished]
    stops = [stop.encode() for stop in params.stop]
    if any(draft.replaced for draft in (*alive, *finished)):
        return ""
    texts = [_without_begun_stop(draft.text, stops) for draft in alive]
    texts += [draft.text for draft in finished]
    common = stable_prefix(texts)
    if params.trim != "none":
        common = _LAST_WORD.sub("", common)
    return trim_text(common, "stop", params.single_line, params.trim)


def _without_begun_stop(text: bytes, stops: Seq[bytes]) -> bytes:
    """`text` up to the first place where a stop string may begin, to be completed by later tokens."""
    longest = max(map(len, stops), default=0)
    for start in range(max(0, len(text) - longest + 1), len(text)):
        tail = text[start:]
        if any(stop.startswith(tail) for stop in stops):
            return text[:start]
    return text


def answer(sequence: Sequence, tokenizer: Tokenizer, runner: ModelRunner, now_s: float) -> GenerationOutput:
    """The answer to a request that ends now.

    Args:
        sequence: the request; a verification pass adds to its `forward_rows`.
        tokenizer: for the texts of tokens.
        runner: runs the verification pass, if the request wants one.
        now_s: the clock.
    """
    prompt = sequence.prompt_token_ids
    shown = _shown_drafts(sequence)
    verification = _verified(sequence, shown, tokenizer, runner)
    return GenerationOutput(
        request_id=sequence.request_id,
        drafts=tuple(_output(sequence, index, draft, verification) for index, draft in enumerate(shown)),
        usage=Usage(
            prompt_tokens=len(prompt) - sequence.num_start_tokens,
            completion_tokens=sum(len(draft.token_ids) for draft in shown),
            cached_tokens=max(0, sequence.num_cached_tokens - sequence.num_start_tokens),
            forward_rows=sequence.forward_rows,
            rows_by_depth=tuple(sequence.rows_by_depth),
            draft_rows=sequence.draft_rows,
            reused_drafts=min(len(shown), sum(_num_reused(branch) for branch in sequence.branches)),
            limited_by_load=any(branch.is_limited for branch in sequence.branches),
        ),
        timings=_timings(sequence, now_s),
        prompt_token_ids=tuple(prompt[sequence.num_start_tokens :]),
        warnings=tuple(sequence.warnings),
        prompt_logprobs=verification.prompt if verification else None,
    )


def _num_reused(branch: Branch) -> int:
    """Drafts of a branch that grew without a row."""
    return len(branch.drafts.alive) + len(branch.drafts.finished) if branch.num_steps > 1 and not branch.num_rows else 0


def _shown_drafts(sequence: Sequence) -> list[_Shown]:
    """The best drafts, each trimmed, none that reads like a better one, none below `min_score`."""
    params = sequence.params
    drafts = all_drafts(sequence)
    rule = params.ranking_rule
    ranked = rank(drafts, len(drafts.alive) + len(drafts.finished), rule)
    whole = _whole_draft(sequence)
    if whole is not None:  # whoever asks for a text wants a whole one first
        ranked.sort(key=lambda draft: (draft.stem_ids, draft.token_ids) != (whole.stem_ids, whole.token_ids))
    by_text: dict[tuple[bytes, str], _Shown] = {}
    for draft in ranked:
        if params.min_score is None or rule.score(draft) >= params.min_score:
            shown = _cut(draft, rule, params)
            # Blanks at the end of a line or a text suggest nothing; but the spared draft has been streamed already.
            ends_blank = shown.finish_reason == "stop" and not shown.text.strip() and draft is not whole
            by_text.setdefault((shown.replaced, "" if ends_blank else rule.as_read(shown.text)), shown)
    if len(by_text) > 1:
        by_text.pop((b"", ""), None)
    return list(by_text.values())[: params.num_shown]


def _cut(draft: Draft, rule: SelectionRule, params: GenerationParams) -> _Shown:
    """A draft trimmed for display, with the tokens of the text that is left."""
    # An end of text has a log-probability, but no piece and no token.
    pieces, token_ids, text = draft.pieces, draft.token_ids, draft.text
    finish_reason = draft.finish_reason or "length"
    whole = valid_utf8_prefix(text)
    shown = trim_text(whole, finish_reason, params.single_line, params.trim)
    num_tokens = len(pieces) if shown == whole else tokens_within(pieces, len(shown.encode()))
    logprobs = draft.token_logprobs[: min(num_tokens, len(token_ids))]
    return _Shown(
        rule.score(draft),
        shown,
        token_ids[:num_tokens],
        pieces[:num_tokens],
        logprobs,
        finish_reason,
        draft.stem_ids,
        draft.replaced,
        extents_within(rule.extents(draft), len(shown)),
    )


def _verified(sequence: Sequence, shown: Seq[_Shown], tokenizer: Tokenizer, runner: ModelRunner) -> Verification | None:
    """The verification pass over the best drafts; None if the request wants none."""
    params, prompt = sequence.params, sequence.prompt_token_ids
    if params.verify_top is None or not shown:
        return None
    pairs = [([*sequence.shared_token_ids, *draft.stem_ids], draft.token_ids) for draft in shown[: params.num_verified]]
    front, own = prompt[: sequence.num_start_tokens], prompt[sequence.num_start_tokens :]
    echoed = own if own and params.echo_logprobs else None
    verification = verify(runner, tokenizer, pairs, params.verify_top, front, echoed)
    sequence.forward_rows += verification.num_rows
    return verification


def _output(sequence: Sequence, index: int, draft: _Shown, verification: Verification | None) -> DraftOutput:
    exact = None
    if verification is not None and index < len(verification.drafts):
        exact = _given_the_text(sequence, draft, verification.drafts[index])
    return DraftOutput(
        index=index,
        text=draft.text,
        token_ids=draft.token_ids,
        tokens=tuple(piece.decode("utf-8", errors="replace") for piece in draft.pieces),
        score=draft.score,
        token_logprobs=draft.token_logprobs,
        finish_reason=draft.finish_reason,
        exact_logprobs=exact,
        replaces=Replaced.of(draft.replaced),
        extents=draft.extents,
    )


def _given_the_text(sequence: Sequence, draft: _Shown, tokens: tuple[TokenLogprob, ...]) -> tuple[TokenLogprob, ...]:
    """A draft's exact log-probabilities. With token healing, the first is given the typed text, not its tokens."""
    if sequence.healing is None or not tokens:
        return tokens
    text = draft.pieces[0].decode("utf-8", errors="replace")
    first = TokenLogprob(tokens[0].token_id, text, draft.token_logprobs[0], sequence.opening_alternatives)
    return (first, *tokens[1:])


def _timings(sequence: Sequence, now_s: float) -> Timings:
    started_s = now_s if sequence.start_s is None else sequence.start_s
    return Timings(
        queue_ms=1e3 * (started_s - sequence.arrival_s),
        prefill_ms=1e3 * sequence.prefill_s,
        decode_ms=1e3 * sequence.decode_s,
        ngram_ms=1e3 * sequence.ngram_s,
        total_ms=1e3 * (now_s - sequence.arrival_s),
    )
