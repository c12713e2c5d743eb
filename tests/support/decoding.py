"""Engines with tiny models, a counter of model rows, and n-gram scorers for tests."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from support.models import tiny_model, tiny_tokenizer
from transformers import PreTrainedModel

from superdraft.decoding.build import build_engine
from superdraft.decoding.config import EngineConfig
from superdraft.decoding.engine.engine import Engine
from superdraft.decoding.loading.loader import LoadedModel
from superdraft.decoding.outputs import GenerationOutput, StepOutput

DEFAULTS: dict[str, object] = {
    "max_model_len": 96,
    "num_slots": 4,
    "kv_memory_bytes": 1_000_000,
    "document_start": False,  # so that the tests can pass the same tokens to transformers
}


def tiny_engine(
    architecture: str = "llama", *, seed: int = 0, dtype: torch.dtype = torch.float32, **config: object
) -> tuple[Engine, PreTrainedModel]:
    model = tiny_model(architecture, seed).to(dtype)
    loaded = LoadedModel(model, tiny_tokenizer(), architecture, Path())
    return build_engine(loaded, EngineConfig(**(DEFAULTS | config))), model


def run_all(engine: Engine) -> dict[str, StepOutput]:
    """Step until nothing is left; return the terminal outputs. Fails if a request is answered twice or a slot leaks."""
    outputs: dict[str, StepOutput] = {}
    while engine.has_unfinished:
        for output in engine.step():
            assert output.request_id not in outputs
            assert [output.snapshot, output.output, output.error].count(None) == 2
            if output.is_terminal:
                outputs[output.request_id] = output
        assert 0 <= engine.num_used_slots <= engine.num_slots
    assert engine.step() == []
    assert engine.num_used_slots == 0
    return outputs


def texts(output: GenerationOutput) -> list[str]:
    return [draft.text for draft in output.drafts]


@contextlib.contextmanager
def counted_rows(model: PreTrainedModel) -> Iterator[list[tuple[int, int]]]:
    """Record the (rows, positions) of every forward pass, as the model receives them."""
    shapes: list[tuple[int, int]] = []

    def note(_module: object, _args: object, kwargs: dict) -> None:
        tensor = kwargs["inputs_embeds"] if kwargs.get("inputs_embeds") is not None else kwargs["input_ids"]
        shapes.append((tensor.shape[0], tensor.shape[1]))

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield shapes
    finally:
        handle.remove()


class HashScorer:
    """An artificial n-gram model: a deterministic log-probability for each (last token, candidate)."""

    order = 2

    def initial_state(self, token_ids: Sequence[int]) -> int:
        return token_ids[-1]

    def score(self, states: Sequence[int], candidates: Sequence[Sequence[int]]) -> list[list[float]]:
        return [
            [-0.1 - (state * 31 + x * 17) % 23 / 4 for x in row] for state, row in zip(states, candidates, strict=True)
        ]

    def advance(self, state: int, token_id: int) -> int:
        return token_id


class FailingScorer(HashScorer):
    """A scorer that raises after a number of calls."""

    def __init__(self, calls: int) -> None:
        self.calls = calls

    def score(self, states: Sequence[int], candidates: Sequence[Sequence[int]]) -> list[list[float]]:
        if self.calls == 0:
            raise RuntimeError("scorer broke on a secret prompt")
        self.calls -= 1
        return super().score(states, candidates)
