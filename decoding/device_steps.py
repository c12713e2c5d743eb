"""Decode steps that run on the model's device from end to end: superposition, forward, n-gram model and choice.

The host starts a step and may start the next one before it has read anything: the device goes on with the children that
it has chosen itself. Reading a step's results is the only time the host waits for the device.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from superdraft.decoding.decode_attention import Attention
from superdraft.decoding.device_choice import DeviceChoice, StepShape, superposed
from superdraft.decoding.device_rows import Column, DraftRows, RowKind
from superdraft.decoding.model_runner import ModelRunner
from superdraft.decoding.model_support import can_be_recorded
from superdraft.decoding.ngram import NgramScorer, TabularScorer
from superdraft.decoding.ngram_tables import NgramTables
from superdraft.decoding.scheduler import SlotMove
from superdraft.decoding.sequence import Branch
from superdraft.decoding.step_graphs import CudaGraphRecorder, StepGraphs
from superdraft.decoding.tokenizer import Tokenizer
from superdraft.decoding.transfer import to_device

WIDTHS = (1, 4, 8, 16)
"""Places for drafts that a step can have; a step with a request of more drafts is the host's."""
_FEWEST_POSITIONS = 256
# Sizes of steps for which attention is chosen when the engine starts; each takes a moment.
_ATTENTION_ROWS = (1, 8, 64)
_ATTENTION_LENGTHS = (512, 2048)
# Products of more rows are what matrix libraries are made for.
_PRODUCT_ROWS = (1, 2, 3, 4, 6, 8)


@dataclass(slots=True, eq=False)
class DeviceRow:
    """What the device holds of a branch.

    Attributes:
        kind: who chooses its tokens.
        num_drafts: places that it needs.
        columns: the numbers that steer it.
        length: positions of its slot that hold keys and values once all steps that were started are through.
    """

    kind: RowKind
    num_drafts: int
    columns: dict[Column, float]
    length: int

    @property
    def is_drawn(self) -> bool:
        """Whether each of its tokens takes a random number."""
        return self.kind == RowKind.SAMPLED and self.columns[Column.TEMPERATURE] > 0


@dataclass(slots=True, eq=False)
class Launch:
    """A step that was started.

    Attributes:
        branches: row by row, as they stood then; some may have ended or moved since.
        rows: what the device held of each.
    """

    branches: list[Branch]
    rows: list[DeviceRow]
    _results: Tensor
    _is_through: torch.cuda.Event | None

    def results(self) -> NDArray[np.float64]:
        """What `DeviceChoice` gave, shape [B, 1 + 4 L]; waits for it."""
        if self._is_through is not None:
            self._is_through.synchronize()
        results: NDArray[np.float64] = self._results.numpy()
        return results


class DeviceSteps:
    """Starts decode steps.

    Args:
        runner: the model and its KV cache, with a scratch position in each slot.
        tokenizer: says what no draft contains and what ends one.
        tunes_kernels: try all ways to compute attention and products, see `attention_choice`.
    """

    def __init__(self, runner: ModelRunner, tokenizer: Tokenizer, *, tunes_kernels: bool = False) -> None:
        self._runner, self._device = runner, runner.device
        self._is_cuda = self._device.type == "cuda"
        # Graphs and events belong to the current GPU, which need not be the model's.
        self._current = torch.cuda.device(self._device) if self._is_cuda else contextlib.nullcontext()
        self._graphs = StepGraphs(CudaGraphRecorder() if self._is_cuda and can_be_recorded(runner.model) else None)
        self._attentions = {
            (num_rows, read_length): runner.choose_attention(num_rows, read_length, tries_all=tunes_kernels)
            for num_rows in _sizes(_ATTENTION_ROWS, runner.num_slots)
            for read_length in _sizes(_ATTENTION_LENGTHS, runner.max_model_len)
        }
        if tunes_kernels:
            for num_rows in _PRODUCT_ROWS:
                runner.choose_products(num_rows)
        self._rows = DraftRows(runner.num_slots, WIDTHS[-1], self._device)
        self._choice = DeviceChoice(
            self._rows,
            runner.vocab_size,
            suppressed=torch.tensor(tokenizer.suppressed_token_ids, dtype=torch.long, device=self._device),
            ends=torch.tensor(sorted(tokenizer.eos_token_ids), dtype=torch.long, device=self._device),
        )
        self._scorer: TabularScorer[Any] | None = None
        # A graph remembers where these lie.
        self._num_running = torch.zeros(1, dtype=torch.long, device=self._device)
        self._logits = torch.zeros(runner.num_slots, runner.vocab_size, device=self._device)
        self._results: dict[StepShape, Tensor] = {}

    @torch.inference_mode()
    def place_ngram(self, scorer: TabularScorer[Any]) -> None:
        """Hold this n-gram model on the device, instead of any other; not while a step is under way."""
        self._choice.tables = NgramTables(scorer.tables(), self._device, num_tokens=self._runner.vocab_size)
        self._rows.place_ngram(scorer.order)
        self._scorer = scorer
        self._graphs.clear()

    def holds(self, scorer: NgramScorer[Any] | None) -> bool:
        """Whether drafts that have this n-gram model, or none, can be scored on the device."""
        return scorer is None or scorer is self._scorer

    @torch.inference_mode()
    def logits(self, rows: Sequence[int]) -> Tensor:
        """A copy of some rows' logits in the step that was started last, float32, shape [number of rows, V]."""
        return self._logits[self._sent(rows)]

    @torch.inference_mode()
    def launch(self, branches: Sequence[Branch], new: Sequence[tuple[Branch, RowKind]]) -> Launch:
        """Start a step.

        Args:
            branches: those of slots [0, B), in that order.
            new: the ones among them that the device holds nothing of, and how their tokens are chosen.
        """
        self._write(new)
        rows = [branch.device_row for branch in branches if branch.device_row is not None]
        drawn = [(branch.slot, branch.rng.random()) for branch, row in zip(branches, rows, strict=True) if row.is_drawn]
        if drawn:
            slots, uniforms = zip(*drawn, strict=True)
            self._rows.uniforms.index_copy_(0, self._sent(slots), self._sent(uniforms, torch.float64))
        self._num_running.fill_(len(rows))
        shape = self._shape(rows)
        if shape not in self._results:
            size = (shape.num_rows, 1 + 4 * shape.num_children)
            self._results[shape] = torch.zeros(size, dtype=torch.float64, device=self._device)
        with self._current:
            self._graphs.run(shape, lambda: self._step(shape))
            fetched = self._fetched(self._results[shape][: len(rows)])
        for row in rows:
            row.length += 1
        return Launch(list(branches), rows, *fetched)

    @torch.inference_mode()
    def move(self, move: SlotMove) -> None:
        """Follow a branch to another slot."""
        self._rows.move(move.source, move.target)

    def _step(self, shape: StepShape) -> None:
        """All of one step. Nothing in it may wait for the device."""
        size, scratch = shape.num_rows, self._runner.max_model_len
        is_running = torch.arange(size, device=self._device) < self._num_running
        lengths = self._rows.column(Column.LENGTH, size).squeeze(1).long()
        # Rows that don't run, and those that are through without the host knowing yet, write where nobody reads.
        positions = torch.where(is_running, lengths.clamp(max=scratch), scratch)
        embeddings = superposed(self._rows, self._runner.embedding, shape)
        logits = self._logits[:size]
        attention = self._attention(shape)
        logits.copy_(self._runner.decode_at(embeddings, positions, shape.read_length, attention))
        self._results[shape].copy_(self._choice(logits, shape))

    def _attention(self, shape: StepShape) -> Attention | None:
        """What was fastest for the next larger size that was tried."""
        num_rows = next(size for size in _sizes(_ATTENTION_ROWS, self._runner.num_slots) if size >= shape.num_rows)
        read_length = next(
            size for size in _sizes(_ATTENTION_LENGTHS, self._runner.max_model_len) if size >= shape.read_length
        )
        choice = self._attentions[num_rows, read_length]
        return None if choice is None else choice.attention

    def _shape(self, rows: Sequence[DeviceRow]) -> StepShape:
        longest = max(row.length for row in rows) + 1
        widest = max(row.num_drafts for row in rows)
        top_ps = [row.columns[Column.TOP_P] for row in rows if row.is_drawn]
        return StepShape(
            num_rows=min(rounded_up(len(rows)), self._runner.num_slots),
            read_length=min(rounded_up(max(longest, _FEWEST_POSITIONS)), self._runner.max_model_len),
            num_drafts=next(width for width in WIDTHS if width >= widest),
            samples_all=any(top_p >= 1 for top_p in top_ps),
            samples_nucleus=any(top_p < 1 for top_p in top_ps),
            with_ngram=any(row.columns[Column.ALPHA] > 0 for row in rows),
        )

    def _write(self, new: Sequence[tuple[Branch, RowKind]]) -> None:
        """Tell the device what drafts these branches have."""
        if not new:
            return
        lines, words = [], []
        for branch, kind in new:
            alive = branch.drafts.alive
            columns = columns_of(branch, kind)
            num_drafts = max(len(alive), int(columns[Column.NUM_DRAFTS]))
            branch.device_row = DeviceRow(kind, num_drafts, columns, branch.num_computed)
            tokens, scores = branch.last_token_ids, [draft.logprob for draft in alive]
            lines.append(self._rows.line(columns, tokens, scores))
            words.append(self._ngram_contexts(branch, columns[Column.ALPHA] > 0))
        slots = self._sent([branch.slot for branch, _ in new])
        self._rows.lines.index_copy_(0, slots, self._sent(lines, torch.float64))
        if self._rows.nodes is not None and self._choice.tables is not None:
            self._rows.nodes.index_copy_(0, slots, self._choice.tables.state_after(self._sent(words)))

    def _ngram_contexts(self, branch: Branch, has_ngram: bool) -> list[list[int]]:
        """The words that the n-gram state of each place's draft depends on, -1 where there are none, [K, order - 1]."""
        if self._scorer is None:
            return []
        size = self._scorer.order - 1
        contexts = [[-1] * size for _ in range(self._rows.max_drafts)]
        if has_ngram:
            before = branch.context_token_ids[-size:] if size else []
            for place, draft in enumerate(branch.drafts.alive):
                words = self._scorer.context_words([*before, *draft.token_ids])
                contexts[place][size - len(words) :] = words
        return contexts

    def _sent(self, values: Sequence[Any], dtype: torch.dtype = torch.long) -> Tensor:
        return to_device(values, self._device, dtype)

    def _fetched(self, results: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
        """A copy on the host, and the event that it is complete."""
        if not self._is_cuda:
            return results.clone(), None
        copy = torch.empty(results.shape, dtype=results.dtype, pin_memory=True)
        copy.copy_(results, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        return copy, event


def columns_of(branch: Branch, kind: RowKind) -> dict[Column, float]:
    """The numbers that steer a branch's row."""
    params, num_alive = branch.sequence.params, len(branch.drafts.alive)
    has_ngram = branch.sequence.scorer is not None
    columns = {
        Column.LENGTH: branch.num_computed,
        Column.KIND: kind,
        Column.ALPHA: 0.0,
        Column.TAU: 1.0,
        Column.PENALTY: 0.0,
        Column.NUM_DRAFTS: num_alive,
        Column.NUM_CANDIDATES: 1,
        Column.TEMPERATURE: 0.0,
        Column.TOP_P: 1.0,
    }
    if kind == RowKind.SAMPLED and params.strategy != "greedy":
        columns |= {Column.TEMPERATURE: params.temperature, Column.TOP_P: params.top_p}
    if kind in (RowKind.SUPERPOSED, RowKind.OWN):
        columns |= {
            Column.ALPHA: params.alpha if has_ngram else 0.0,
            Column.TAU: params.tau,
            Column.PENALTY: params.penalty,
            Column.NUM_DRAFTS: params.drafts_per_branch if kind == RowKind.SUPERPOSED else num_alive,
            Column.NUM_CANDIDATES: params.num_candidates,
        }
    return columns


def _sizes(sizes: Sequence[int], largest: int) -> list[int]:
    """Those below the largest that can occur, and that."""
    return [*(size for size in sizes if size < largest), largest]


def rounded_up(number: int) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, 16, ...: few sizes, so few graphs, at most a third for nothing."""
    power = 1 << (number - 1).bit_length()
    middle = power * 3 // 4
    return middle if number <= middle and power >= 4 else power
