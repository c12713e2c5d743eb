"""What the served weights and activations cost in accuracy: perplexity of texts, against the model in float32.

Each text is run twice through the served forward: as one prompt, and token by token in decode steps of eight texts.
"""

import math
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from superdraft.benchmarks.options import AsJson
from superdraft.benchmarks.summary import report, tracked
from superdraft.decoding.build import build_engine
from superdraft.decoding.config import EngineConfig
from superdraft.decoding.loading.loader import load_model
from superdraft.decoding.loading.store import DEFAULT_MODEL
from superdraft.decoding.model.torch_runner import TorchRunner
from superdraft.evaluation.options import Dtype, Model

_TEXTS_AT_ONCE = 8


def main(
    texts: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="UTF-8 text, a paragraph per line.")],
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "auto",
    num_tokens: Annotated[int, typer.Option("--tokens", min=2, help="Tokens per text, at most.")] = 128,
    limit: Annotated[int, typer.Option(min=1, help="Number of texts: the longest of the file.")] = 128,
    as_json: AsJson = False,
) -> None:
    """Measure the perplexity of texts as served and in float32."""
    config = EngineConfig(max_model_len=num_tokens, num_slots=_TEXTS_AT_ONCE)
    loaded = load_model(model, device="cpu", dtype=dtype)
    lines = sorted(texts.read_text(encoding="utf-8").splitlines(), key=len, reverse=True)[:limit]
    samples = [loaded.tokenizer(line)["input_ids"][:num_tokens] for line in lines]
    samples = [ids for ids in samples if len(ids) > 1]
    served = build_engine(loaded, config)._runner
    exact = build_engine(load_model(model, device="cpu", dtype="float32"), config)._runner
    assert isinstance(served, TorchRunner)
    assert isinstance(exact, TorchRunner)
    groups = [samples[i : i + _TEXTS_AT_ONCE] for i in range(0, len(samples), _TEXTS_AT_ONCE)]
    losses = {"float32": 0.0, "served, prompts": 0.0, "served, steps": 0.0}
    for group in tracked(groups, "measuring"):
        losses["float32"] += by_prompts(exact, group)
        losses["served, prompts"] += by_prompts(served, group)
        losses["served, steps"] += by_steps(served, group)
    count = sum(len(ids) - 1 for ids in samples)
    base = losses["float32"] / count
    rows: list[dict[str, Any]] = [
        {
            "forward": name,
            "perplexity": round(math.exp(loss / count), 3),
            "worse_by_percent": round(100 * (math.exp(loss / count - base) - 1), 2),
        }
        for name, loss in losses.items()
    ]
    settings = {"model": model, "dtype": dtype, "texts": len(samples), "predicted_tokens": count}
    report(__doc__, settings, as_json, rows=rows)


def by_prompts(runner: TorchRunner, texts: list[list[int]]) -> float:
    """-ln p of all tokens after the first of each text, from one pass per text."""
    return sum(_loss(runner.exact_logprobs([ids])[0][:-1], ids[1:]) for ids in texts)


def by_steps(runner: TorchRunner, texts: list[list[int]]) -> float:
    """The same, from decode steps that run all texts side by side."""
    total = 0.0
    for position in range(max(map(len, texts)) - 1):
        inputs = [ids[min(position, len(ids) - 1)] for ids in texts]
        logprobs = torch.log_softmax(runner.decode(runner.embed(inputs), [position] * len(texts)).float(), dim=-1)
        for row, ids in enumerate(texts):
            if position + 1 < len(ids):
                total += _loss(logprobs[row : row + 1], [ids[position + 1]])
    return total


def _loss(logprobs: torch.Tensor, token_ids: list[int]) -> float:
    return -float(logprobs.gather(1, torch.tensor(token_ids).unsqueeze(1)).double().sum())
