"""`superdraft lab eval linearity`: superposed forwards against sums of separate ones (the paper's figure 3)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor

from superdraft.decoding.engine.admission import prompt_token_ids
from superdraft.decoding.loading.loader import load_model
from superdraft.decoding.loading.store import DEFAULT_MODEL
from superdraft.decoding.method.draft_set import Children, Draft, DraftSet, TokenAppender
from superdraft.decoding.method.scoring import cut, tempered_logprobs
from superdraft.decoding.method.superposition import draft_weights, superpose
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.text.tokenizer import Tokenizer
from superdraft.evaluation import options
from superdraft.evaluation.cases.prompts import read_prompts
from superdraft.evaluation.measures.bootstrap import Interval, as_ratios, interval
from superdraft.evaluation.measures.evaluator import ExactRunner, exact_runner
from superdraft.evaluation.options import all_files, progress_of
from superdraft.evaluation.reports import plots
from superdraft.evaluation.reports.machine import describe_machine
from superdraft.evaluation.reports.report import write_json
from superdraft.evaluation.reports.tables import format_interval, markdown_table


@dataclass(frozen=True, slots=True)
class _Step:
    """One superposed forward: the drafts and weights that went in, and the resulting logits, shape [V]."""

    drafts: tuple[tuple[int, ...], ...]
    weights: list[float]
    logits: Tensor


class LinearityProbe:
    """Runs Superposed Decoding without an n-gram model, one prompt at a time, and then each draft separately.

    Args:
        runner: the model, with at least `num_drafts * max_tokens` slots.
        tokenizer: of the model.
        params: k, the number of tokens, tau and m are used.
    """

    def __init__(self, runner: ExactRunner, tokenizer: Tokenizer, params: GenerationParams) -> None:
        self._runner = runner
        self._tokenizer = tokenizer
        self._params = params
        # If drafts could end, fewer and fewer would be left to superpose.
        barred = sorted({*self._tokenizer.suppressed_token_ids, *self._tokenizer.eos_token_ids})
        self._barred = torch.tensor(barred, dtype=torch.long, device=runner.device)

    def similarities(self, text: str) -> NDArray[np.float64]:
        """Cosine similarity of the logits at each superposed step of one prompt, shape [max_tokens]."""
        prompt = prompt_token_ids(text, self._tokenizer)
        steps = self._superposed_steps(prompt)
        exact = self._exact_logits(prompt, [ids for step in steps for ids in step.drafts])
        return np.array([self._similarity(step, exact) for step in steps])

    def _superposed_steps(self, prompt: Sequence[int]) -> list[_Step]:
        extend = TokenAppender(self._tokenizer.token_bytes, self._tokenizer.eos_token_ids)
        params, drafts = self._params, DraftSet((Draft(),))
        logits = self._runner.prefill([0], [prompt], [0])
        steps = []
        for position in range(len(prompt), len(prompt) + params.max_tokens):
            candidates = cut(logits.float().clone(), params.num_candidates, self._barred)
            num_alive = len(drafts.alive)
            token_ids = [candidates.token_ids[0].tolist()] * num_alive
            ln_p_f = tempered_logprobs(candidates.logits, params.tau)
            children = Children.of(drafts.alive, token_ids, [candidates.logprobs[0]] * num_alive, ln_p_f)
            drafts = params.rule.select(drafts, children, extend, params.num_drafts)
            embeddings = self._runner.embed([draft.token_ids[-1] for draft in drafts.alive])
            weights = draft_weights([draft.logprob for draft in drafts.alive])
            logits = self._runner.decode(superpose(embeddings, [weights]), [position])
            steps.append(_Step(tuple(draft.token_ids for draft in drafts.alive), weights, logits[0].float()))
        return steps

    def _exact_logits(self, prompt: Sequence[int], drafts: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], Tensor]:
        """Logits [V] after each draft's last token; a draft that begins another one shares its row."""
        beginnings = {ids[:length] for ids in drafts for length in range(1, len(ids))}
        longest = [ids for ids in dict.fromkeys(drafts) if ids not in beginnings]
        found: dict[tuple[int, ...], Tensor] = {}
        for ids, row in zip(longest, self._runner.draft_logits(prompt, longest), strict=True):
            found.update((ids[: length + 1], row[length]) for length in range(len(ids)))
        return found

    def _similarity(self, step: _Step, exact: dict[tuple[int, ...], Tensor]) -> float:
        weights = torch.tensor(step.weights, device=step.logits.device)
        summed = weights @ torch.stack([exact[ids] for ids in step.drafts])
        return float(torch.cosine_similarity(step.logits, summed, dim=0))


def main(
    prompts: options.Files = None,
    more: options.MoreFiles = None,
    num_drafts: Annotated[int, typer.Option("--num-drafts", "-k", min=2, help="Number of superposed drafts.")] = 3,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", min=1, help="Number of superposed steps.")] = 20,
    limit: options.Limit = None,
    tau: Annotated[float, typer.Option(help="Temperature of the language model's scores.")] = 0.06,
    model: options.Model = DEFAULT_MODEL,
    dtype: options.Dtype = "float32",
    device: options.Device = "auto",
    output: options.Output = None,
) -> None:
    """Compare superposed forwards with the weighted sum of separate ones, step by step."""
    params = GenerationParams(num_drafts=num_drafts, max_tokens=max_tokens, alpha=0.0, tau=tau)
    folder, console = output or Path("eval-linearity"), Console()
    texts = [prompt.text for prompt in read_prompts(all_files(prompts, more), limit)]
    loaded = load_model(model, dtype=dtype, device=device)
    tokenizer = Tokenizer(loaded.tokenizer)
    longest = max(len(prompt_token_ids(text, tokenizer)) for text in texts)
    runner = exact_runner(loaded, longest + max_tokens, num_drafts * max_tokens)
    probe = LinearityProbe(runner, Tokenizer(loaded.tokenizer, runner.vocab_size), params)
    rows = []
    with progress_of(["linearity"], len(texts), console) as advance:
        for text in texts:
            rows.append(probe.similarities(text))
            advance("linearity", 1)
    found = [interval(as_ratios(column)) for column in np.array(rows).T]
    about = {"model": loaded.name, "num_drafts": num_drafts, "tau": tau, "n": len(texts)}
    _report(folder, about, found, console)


def _report(folder: Path, about: Mapping[str, Any], found: Sequence[Interval], console: Console) -> None:
    """Write results.json, the table and the plot, and print the cosines of all steps."""
    folder.mkdir(parents=True, exist_ok=True)
    steps = [{"step": i, "cosine": one.value, "ci": [one.low, one.high]} for i, one in enumerate(found, 1)]
    write_json(folder / "results.json", {**about, "steps": steps, "machine": describe_machine()})
    rows = [(str(i), format_interval(one)) for i, one in enumerate(found, 1)]
    table = markdown_table(("step", "cosine"), rows)
    (folder / "results.md").write_text(f"# Linearity of {about['model']}\n\n{table}\n", encoding="utf-8")
    points = {about["model"]: [(float(i), one) for i, one in enumerate(found, 1)]}
    plots.lines(folder / "linearity.png", points, "superposed steps", "cosine similarity of the logits")
    shown = Table("superposed steps", "cosine")
    for row in rows:
        shown.add_row(*row)
    console.print(shown)
