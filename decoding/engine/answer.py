"""From a sequence that has ended to its answer: drafts ranked, cut for display, made distinct, verified."""

import re
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace

from superdraft.decoding.engine.sequence import Sequence
from superdraft.decoding.engine.verification import verify
from superdraft.decoding.method.draft_set import Draft, DraftSet
from superdraft.decoding.method.ranking import rank
from superdraft.decoding.model.runner import ModelRunner
from superdraft.decoding.outputs import (
    DraftOutput,
    DraftSnapshot,
    FinishReason,
    GenerationOutput,
    Snapshot,
    Timings,
    TokenLogprob,
    Usage,
)
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.text.tokenizer import Tokenizer, valid_utf8_prefix
from superdraft.decoding.text.trimming import stable_prefix, tokens_within, trim_text

_LAST_WORD = re.compile(r"\s*\S*$")


@dataclass(frozen=True, slots=True)
class _Shown:
    """A draft as it is shown."""

    score: float
    text: str
    token_ids: tuple[int, ...]
    pieces: tuple[bytes, ...]
    token_logprobs: tuple[float, ...]
    finish_reason: FinishReason
    path: tuple[int, ...]


def all_drafts(sequence: Sequence) -> DraftSet:
    """The drafts of all branches together; those that end because they are improbable have that as their reason."""
    max_tokens = sequence.params.max_tokens
    unsure_branches = [branch for branch in sequence.branches if branch.is_unsure and branch.num_steps < max_tokens]
    alive = [draft for branch in sequence.branches if branch not in unsure_branches for draft in branch.drafts.alive]
    unsure = [replace(draft, finish_reason="improbable") for branch in unsure_branches for draft in branch.drafts.alive]
    finished = (draft for branch in sequence.branches for draft in branch.drafts.finished)
    return DraftSet(tuple(alive), (*unsure, *finished))


def snapshot(sequence: Sequence) -> Snapshot:
    """The drafts as they stand between two steps."""
    params = sequence.params
    drafts = all_drafts(sequence)
    score = params.ranking_rule.score
    ranked = rank(drafts, params.num_shown, score)
    return Snapshot(
        num_steps=max(branch.num_steps for branch in sequence.branches),
        drafts=tuple(DraftSnapshot(valid_utf8_prefix(draft.text), score(draft)) for draft in ranked),
        stable_text=_stable_text(sequence),
    )


def _stable_text(sequence: Sequence) -> str:
    """What all drafts begin with, and so all their children; without what trimming or a stop string may still take."""
    params = sequence.params
    drafts = [draft for branch in sequence.branches for draft in branch.drafts.alive]
    stops = [stop.encode() for stop in params.stop]
    texts = [_without_begun_stop(draft.text, stops) for draft in drafts]
    texts += [draft.text for branch in sequence.branches for draft in branch.drafts.finished]
    common = stable_prefix(texts)
    if params.trim != "none":
        common = _LAST_WORD.sub("", common)
    return trim_text(common, "stop", params.single_line, params.trim)


def _without_begun_stop(text: bytes, stops: Seq[bytes]) -> bytes:
    """`text` up to the first place where a stop string begins that the next tokens may complete."""
    longest = max(map(len, stops), default=0)
    for start in range(max(0, len(text) - longest + 1), len(text)):
        tail = text[start:]
        if any(stop.startswith(tail) for stop in stops):
            return text[:start]
    return text


def answer(sequence: Sequence, tokenizer: Tokenizer, runner: ModelRunner, now_s: float) -> GenerationOutput:
    """The answer to a request that ends now."""
    params, prompt = sequence.params, sequence.prompt_token_ids
    shown = _shown_drafts(sequence)
    verification = None
    if params.verify_top is not None and shown:
        own = (prompt[sequence.num_start_tokens :] or None) if params.echo_logprobs else None
        front = prompt[: sequence.num_start_tokens]
        verified = shown[: params.num_verified]
        pairs = [([*sequence.shared_token_ids, *draft.path], draft.token_ids) for draft in verified]
        verification = verify(runner, tokenizer, pairs, params.verify_top, front, own)
        sequence.forward_rows += verification.num_rows
    outputs = tuple(
        DraftOutput(
            index=index,
            text=draft.text,
            token_ids=draft.token_ids,
            tokens=tuple(piece.decode("utf-8", errors="replace") for piece in draft.pieces),
            score=draft.score,
            token_logprobs=draft.token_logprobs,
            finish_reason=draft.finish_reason,
            exact_logprobs=(
                _given_the_text(sequence, draft, verification.drafts[index])
                if verification is not None and index < len(verification.drafts)
                else None
            ),
        )
        for index, draft in enumerate(shown)
    )
    started_s = now_s if sequence.start_s is None else sequence.start_s
    return GenerationOutput(
        request_id=sequence.request_id,
        drafts=outputs,
        usage=Usage(
            prompt_tokens=len(prompt) - sequence.num_start_tokens,
            completion_tokens=sum(len(draft.token_ids) for draft in outputs),
            cached_tokens=max(0, sequence.num_cached_tokens - sequence.num_start_tokens),
            forward_rows=sequence.forward_rows,
        ),
        timings=Timings(
            queue_ms=1e3 * (started_s - sequence.arrival_s),
            prefill_ms=1e3 * sequence.prefill_s,
            decode_ms=1e3 * sequence.decode_s,
            ngram_ms=1e3 * sequence.ngram_s,
            total_ms=1e3 * (now_s - sequence.arrival_s),
        ),
        prompt_token_ids=tuple(prompt[sequence.num_start_tokens :]),
        warnings=tuple(sequence.warnings),
        prompt_logprobs=verification.prompt if verification else None,
    )


def _shown_drafts(sequence: Sequence) -> list[_Shown]:
    """The best drafts, each cut for display, no text twice, none below the wanted score."""
    params = sequence.params
    drafts = all_drafts(sequence)
    score = params.ranking_rule.score
    ranked = rank(drafts, len(drafts.alive) + len(drafts.finished), score)
    by_text: dict[str, _Shown] = {}
    for draft in ranked:
        if params.min_score is None or score(draft) >= params.min_score:
            shown = _cut(draft, score(draft), params)
            by_text.setdefault(shown.text, shown)
    if len(by_text) > 1:
        by_text.pop("", None)
    return list(by_text.values())[: params.num_shown]


def _cut(draft: Draft, score: float, params: GenerationParams) -> _Shown:
    """One draft's shown text, and the tokens that text comes from."""
    # An end of text adds no piece, and is no token of the draft.
    pieces, token_ids, text = draft.pieces, draft.token_ids, draft.text
    finish_reason = draft.finish_reason or "length"
    whole = valid_utf8_prefix(text)
    shown = trim_text(whole, finish_reason, params.single_line, params.trim)
    num_tokens = len(pieces) if shown == whole else tokens_within(pieces, len(shown.encode()))
    logprobs = draft.token_logprobs[: min(num_tokens, len(token_ids))]
    return _Shown(score, shown, token_ids[:num_tokens], pieces[:num_tokens], logprobs, finish_reason, draft.path)


def _given_the_text(sequence: Sequence, draft: _Shown, tokens: tuple[TokenLogprob, ...]) -> tuple[TokenLogprob, ...]:
    """A draft's exact log-probabilities, the first token's given the typed text and not one tokenisation of it."""
    if sequence.healing is None or not tokens:
        return tokens
    text = draft.pieces[0].decode("utf-8", errors="replace")
    first = TokenLogprob(tokens[0].token_id, text, draft.token_logprobs[0], sequence.start_alternatives)
    return (first, *tokens[1:])
