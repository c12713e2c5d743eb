"""The first tokens of a healed prompt: each draft begins with the last token of a cover of the typed text.

`text/healing` defines cover, stem and opening.
"""

import math
from collections.abc import Sequence as Seq
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from superdraft.decoding.engine.branching import Branching
from superdraft.decoding.engine.decode import DecodeStep, drafts_of, no_token, select
from superdraft.decoding.engine.sequence import Branch, Sequence
from superdraft.decoding.engine.tree import num_common
from superdraft.decoding.engine.trees import Trees
from superdraft.decoding.method.draft_set import Children, Draft, DraftSet
from superdraft.decoding.method.penalties import apply_logit_bias
from superdraft.decoding.method.sampling import nucleus_sample
from superdraft.decoding.method.scoring import are_numbers, interpolate, tempered_logprobs
from superdraft.decoding.text.covers import Covers, Opening, Stem
from superdraft.decoding.text.healing import TokenIndex
from superdraft.decoding.text.tokenizer import Tokenizer
from superdraft.decoding.text.typos import Corrections

MIN_KNOWN_PROBABILITY = 0.1
"""An n-gram model that has a word finds each of its tokens at least this probable after those before; after tokens that
it never saw together, hardly any is."""

Runs = dict[tuple[int, ...], tuple[int, tuple[int, ...]]]
"""For each sequence of typed tokens after the shared ones that was run besides the prompt's own: how many tokens of the
trunk it follows, and the cells of the others."""


class Openings:
    """Chooses the first tokens of healed prompts.

    Args:
        tokenizer: the model's tokenizer.
        trees: run other tokenisations of the typed text.
        branching: gives drafts rows of their own.
        step: scores openings with the n-gram model, and replaces a branch's drafts.
    """

    def __init__(self, tokenizer: Tokenizer, trees: Trees, branching: Branching, step: DecodeStep) -> None:
        self._tokenizer = tokenizer
        self._token_index = TokenIndex.of(tokenizer)
        self._trees = trees
        self._branching = branching
        self._step = step
        tokenizer.encode_inside("")  # prepares the tokenizer, which would delay the first request

    @torch.inference_mode()
    def choose(self, sequence: Sequence, own: Seq[Tensor]) -> None:
        """Choose the first tokens of each branch, and let it continue behind the stem that its drafts follow.

        Args:
            sequence: a request whose prompt is complete. If it samples, it has all its branches.
            own: the model's output after the last shared token and after each of the tokens behind it that have been
                run, float32, each of shape [V].

        Raises:
            SequenceFailedError: the model's output is not numbers.
            InvalidRequestError: the request's logit bias forbids every opening.
        """
        covers = sequence.covers or self.covers(sequence, own)
        runs = self._add_stems(sequence.branches[0], covers, own)
        self._add_corrections(sequence.branches[0], covers, own, runs)
        if not math.isfinite(covers.log_total):
            raise no_token(sequence, is_forbidden=are_numbers(own[0]))
        if sequence.params.verify_top is not None:
            sequence.opening_alternatives = self._alternatives(covers, sequence.params.verify_top)
        for branch in list(sequence.branches):
            self.choose_opening(branch, covers)
            self._branching.divide(branch)
        growing = [branch for branch in sequence.branches if branch.drafts.alive and not branch.is_done]
        stems = [branch.drafts.alive[0].stem_ids for branch in growing]
        for stem_ids in stems:
            if not self._is_run(sequence, stem_ids, runs):
                self._run(sequence.branches[0], stem_ids, runs)
        for branch, stem_ids in zip(growing, stems, strict=True):
            self._take_stem(branch, stem_ids, runs)
        sequence.stem_cells.clear()

    def choose_opening(self, branch: Branch, covers: Covers) -> None:
        """Give a branch drafts of one token. They may follow different stems (`Draft.stem_ids`)."""
        chosen = self._sampled(branch, covers) if branch.is_sampled else self._superposed(branch, covers)
        self._step.settle(branch, chosen)

    def leave_out_tail(self, sequence: Sequence) -> None:
        """Leave out the tokens of the prompt's tail that have not been run, if they do not matter.

        Inside a word they usually do not: hardly any text has the typed part of a word as a token of its own.

        Args:
            sequence: a request that has just begun; those whose shared tokens have to be run stay as they are.
        """
        own = sequence.prompt_logits
        if sequence.healing is None or not own:
            return
        covers = self.covers(sequence, own)
        for length in range(1, len(sequence.healing.tail) + 1):
            stem = covers.own_stem(length)
            if stem is None or not covers.may_matter(stem):  # the tokens behind it matter even less
                sequence.has_whole_tail, sequence.covers = False, covers
                sequence.num_cached_tokens = len(sequence.prompt_token_ids)
                return
            if length >= len(own):
                return
            covers.add(stem, own[length], _biased(own[length], sequence))

    def covers(self, sequence: Sequence, own: Seq[Tensor]) -> Covers:
        """The covers of a prompt's end without tokens between the shared ones and the opening; `own` as in `choose`."""
        assert sequence.healing is not None
        biased = _biased(own[0], sequence)
        return Covers.of_prompt(sequence.healing, self._tokenizer, self._token_index, own[0], biased)

    def _add_stems(self, branch: Branch, covers: Covers, own: Seq[Tensor]) -> Runs:
        """Add the other stems whose covers may matter. Those of which nothing is known are run, one after another.

        Args:
            branch: the request's first branch.
            covers: of the prompt; the stems are added to it.
            own: the model's output after the prompt's own tokens, as in `choose`.

        Returns:
            Where the tokens are that were run in cells of their own, so that none is run twice.
        """
        sequence = branch.sequence
        assert sequence.healing is not None
        runs: Runs = {}
        num_later = 0  # cells of stems whose tokens are run only if a draft follows them
        while (stem := covers.next_unrun()) is not None:
            length = len(stem.stem_ids)
            if length < len(own) and sequence.healing.tail[:length] == stem.stem_ids:
                covers.add(stem, own[length], _biased(own[length], sequence))
                continue
            if not self._may_run(branch, stem.stem_ids, num_later):
                continue
            logits = self._trees.stem_logits(sequence, stem.stem_ids)
            if logits is None:
                logits = self._run(branch, stem.stem_ids, runs)
            else:
                num_later += 1 + length
            covers.add(stem, logits, _biased(logits, sequence))
        return runs

    def _add_corrections(self, branch: Branch, covers: Covers, own: Seq[Tensor], runs: Runs) -> None:
        """Add what may have been meant instead of what was typed; arguments as in `_add_stems`."""
        sequence = branch.sequence
        assert sequence.healing is not None
        word = sequence.healing.word
        fixes = None if word is None else covers.corrections(word)
        if fixes is None or _is_known(sequence, fixes):
            return
        for stem in covers.add_corrections(fixes, own):
            if self._may_run(branch, stem.stem_ids, 0):
                logits = self._trees.stem_logits(sequence, stem.stem_ids)
                logits = self._run(branch, stem.stem_ids, runs) if logits is None else logits
                covers.add_corrected(stem, fixes, _biased(logits, sequence))

    def _may_run(self, branch: Branch, stem_ids: tuple[int, ...], num_later: int) -> bool:
        """Whether there is room for the tokens of a stem, besides cells that are to be taken later."""
        is_too_long = branch.sequence.num_shared + len(stem_ids) > branch.sequence.max_positions
        # A branch on another tree needs a copy of the whole stem.
        return not is_too_long and self._trees.has_spare_cells(branch, num_later + 1 + len(stem_ids))

    def _run(self, branch: Branch, stem_ids: tuple[int, ...], runs: Runs) -> Tensor:
        """Run the tokens of a stem that have not been run; the logits after it, shape [V]."""
        sequence = branch.sequence
        num_run = next(
            length for length in range(len(stem_ids), -1, -1) if self._is_run(sequence, stem_ids[:length], runs)
        )
        self._take_stem(branch, stem_ids[:num_run], runs)
        logits = self._trees.run_stem(branch, stem_ids)
        runs[stem_ids] = branch.base, branch.cells
        sequence.stem_cells.append(branch.cells)
        return logits

    def _num_own(self, sequence: Sequence, stem_ids: tuple[int, ...]) -> int:
        """How many of the first tokens of a stem are in the trunk."""
        assert sequence.healing is not None
        return min(len(sequence.trees[0].trunk) - sequence.num_shared, num_common(sequence.healing.tail, stem_ids))

    def _is_run(self, sequence: Sequence, stem_ids: tuple[int, ...], runs: Runs) -> bool:
        """Whether the tokens of a stem have been run for this request."""
        return self._num_own(sequence, stem_ids) == len(stem_ids) or any(
            run[: len(stem_ids)] == stem_ids for run in runs
        )

    def _take_stem(self, branch: Branch, stem_ids: tuple[int, ...], runs: Runs) -> None:
        """Let a branch continue behind the tokens of a stem, which have been run."""
        sequence = branch.sequence
        num_own = self._num_own(sequence, stem_ids)
        cells: tuple[int, ...] = ()
        base = sequence.num_shared + num_own
        if num_own < len(stem_ids):
            longer = next(run for run in runs if run[: len(stem_ids)] == stem_ids)
            base, cells = runs[longer]
            cells = cells[: sequence.num_shared + len(stem_ids) - base]
        branch.stem_ids = stem_ids
        self._trees.follow(branch, base, cells)

    def _superposed(self, branch: Branch, covers: Covers) -> DraftSet:
        """The k best openings by the request's selection rule, none if none is canonical. The parents are the stems."""
        params = branch.sequence.params
        num, per_draft = params.num_candidates, params.rule.openings_per_draft
        if per_draft is not None:
            num = min(num, per_draft * params.num_drafts)
        openings = covers.openings(num)
        if not openings:
            return DraftSet((), ())
        if params.num_rows == 1:  # a row holds one tokenisation of the typed text: take the most probable one
            best = openings[: params.num_drafts]
            stem_of = [stem.stem_ids for stem in covers.stems]
            weights: dict[tuple[int, ...], float] = {}
            for one in best:
                weights[stem_of[one.stem]] = weights.get(stem_of[one.stem], 0.0) + math.exp(one.logprob)
            heaviest = max(weights, key=lambda stem_ids: weights[stem_ids])
            openings = covers.openings(num, [n for n, stem_ids in enumerate(stem_of) if stem_ids == heaviest])
        roots, token_ids = [], []
        for stem in _stems_of(openings):
            roots.append(self._root(branch, covers.stems[stem]))
            token_ids.append([opening.token_id for opening in openings if opening.stem == stem])
        # One softmax over the openings of all stems, since all compete. Shorter rows are filled with -inf.
        logprobs = np.full((len(roots), max(map(len, token_ids))), -np.inf)
        for row, stem in enumerate(_stems_of(openings)):
            logprobs[row, : len(token_ids[row])] = [opening.logprob for opening in openings if opening.stem == stem]
        tempered = tempered_logprobs(logprobs.ravel(), params.tau).reshape(logprobs.shape)
        ngram = None
        if branch.sequence.scorer is not None:
            ngram = self._step.ngram_logprobs(branch.sequence, roots, token_ids)
        ln_p_f = interpolate(tempered, ngram, params.alpha, params.penalty)
        children = Children.of(roots, token_ids, list(logprobs - covers.log_total), ln_p_f)
        return _with_words(select(branch, DraftSet(tuple(roots)), children), covers)

    def _sampled(self, branch: Branch, covers: Covers) -> DraftSet:
        """One opening, drawn from all covers; none if none is canonical. At temperature 0 the most probable one."""
        params, opening = branch.sequence.params, None
        while opening is None:  # the opening that was drawn may turn out not to be canonical
            if not math.isfinite(covers.log_total):
                return DraftSet((), ())
            shares = torch.from_numpy(covers.shares())
            uniforms = torch.tensor([branch.rng.random()], dtype=torch.float64)
            temperature, top_p = params.sampling_temperature, params.top_p
            index = int(nucleus_sample(shares.unsqueeze(0), [temperature], [top_p], uniforms))
            opening, logprob = covers.opening_at(index), float(shares[index])
        root = self._root(branch, covers.stems[opening.stem])
        return drafts_of(branch.sequence.extend(root, opening.token_id, logprob, logprob))

    def _root(self, branch: Branch, stem: Stem) -> Draft:
        """The empty draft after a stem."""
        sequence = branch.sequence
        state = None
        if sequence.scorer is not None:
            state = sequence.scorer.initial_state([*sequence.shared_token_ids, *stem.stem_ids])
        if not stem.replaced:
            return Draft(ngram_state=state, stem_ids=stem.stem_ids, rest=stem.rest)
        # The blank before the word, which is part of its first token, stays as it is.
        blank, text = stem.replaced[: stem.replaced.startswith(b" ")], self._tokenizer.bytes_of(stem.stem_ids)
        return Draft(
            text=text[len(blank) :],
            ngram_state=state,
            stem_ids=stem.stem_ids,
            rest=b"" if text else blank,
            replaced=stem.replaced[len(blank) :],
        )

    def _alternatives(self, covers: Covers, num: int) -> tuple[tuple[int, str, float], ...]:
        """The most probable openings: token id, text beyond what was typed, log-probability given the typed text."""
        alternatives = []
        for opening in covers.openings(num) if num else []:
            data = self._tokenizer.token_bytes[opening.token_id][len(covers.stems[opening.stem].rest) :]
            text = data.decode("utf-8", errors="replace") or self._tokenizer.token_text(opening.token_id)
            alternatives.append((opening.token_id, text, opening.logprob - covers.log_total))
        return tuple(alternatives)


def _with_words(drafts: DraftSet, covers: Covers) -> DraftSet:
    """The drafts; the best behind each corrected word stands for the word, whatever follows it."""
    alive, seen = list[Draft](), set[tuple[int, ...]]()
    for draft in drafts.alive:
        if draft.replaced.endswith(b" ") and draft.stem_ids not in seen:
            seen.add(draft.stem_ids)
            stem = next(one for one in covers.stems if one.replaced and one.stem_ids == draft.stem_ids)
            draft = replace(draft, word_logprob=stem.log_mass - covers.log_total)
        alive.append(draft)
    return DraftSet(tuple(alive), drafts.finished)


def _is_known(sequence: Sequence, fixes: Corrections) -> bool:
    """Whether the request's n-gram model has the typed word: each of its tokens follows from those before."""
    scorer, plan = sequence.scorer, sequence.healing
    if scorer is None or plan is None:
        return False
    # An unfinished word may end in another token, and a blank follows a finished one: the last token says nothing.
    word_ids = plan.tail[:-1] if len(plan.tail) > 2 or fixes.is_finished else plan.tail
    state, logprobs = scorer.initial_state(sequence.shared_token_ids), list[float]()
    for token_id in word_ids:
        logprobs.append(scorer.score([state], [[token_id]])[0][0])
        state = scorer.advance(state, token_id)
    return len(logprobs) > 1 and min(logprobs[1:]) >= math.log(MIN_KNOWN_PROBABILITY)


def _biased(logits: Tensor, sequence: Sequence) -> Tensor:
    """The logits with the request's logit bias; the same tensor if it has none."""
    bias = sequence.params.logit_bias
    return apply_logit_bias(logits, bias) if bias else logits


def _stems_of(openings: Seq[Opening]) -> list[int]:
    """The indices of the stems of these openings, each once, in order."""
    return sorted({opening.stem for opening in openings})
