"""What personal n-grams gain: prompts are typed one after another, and what was accepted is learned on the way.

Every prompt's reference is typed as `superdraft eval keystrokes` types it, by several typists side by side: one without
personal n-grams, and for each weight one whose model learns what it accepted; with `everything`, also one whose model
learns all that was typed, which the server never does: the most that there is to gain.

A few prompts are typed together, with the models as they were before, so that the engine has a batch to decode.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from superdraft.benchmarks.options import AsJson, Dtype, Model
from superdraft.decoding.ngram import NgramScorer
from superdraft.decoding.text.tokenizer import Tokenizer
from superdraft.evaluation.cases.prompts import Prompt, read_prompts
from superdraft.evaluation.decoders.decoder_spec import parse_decoders
from superdraft.evaluation.decoders.decoders import Ask, Decoder, EngineDecoder
from superdraft.evaluation.decoders.workbench import ModelChoice, Workbench
from superdraft.evaluation.measures.bootstrap import interval, paired_difference
from superdraft.evaluation.measures.metrics import most_words_right
from superdraft.evaluation.measures.typing_simulation import Typist
from superdraft.evaluation.reports.machine import describe_machine
from superdraft.ngram_models.scoring.in_context import InContextScorer
from superdraft.ngram_models.scoring.mixture import UniformScorer
from superdraft.ngram_models.scoring.personal import AcceptedText, PersonalModel, end_of

NUM_PARTS = 4
WEIGHTS = [0.3]  # as in serve
_DECODER = "paper"  # what the server decodes by where there are personal n-grams


@dataclass(slots=True)
class Arm:
    """One typist and what it has learned.

    Attributes:
        name: in the report.
        model: learns; None: there is none.
        weight: of the model.
        learns_everything: that was typed, not only what was accepted.
        keys: of each prompt, with and without drafts.
        words: of each prompt, words right and number of suggestions.
    """

    name: str
    model: PersonalModel | None = None
    weight: float = 0.0
    learns_everything: bool = False
    keys: list[tuple[int, int]] = field(default_factory=list)
    words: list[tuple[int, int]] = field(default_factory=list)

    def scorer(self, background: NgramScorer[Any]) -> NgramScorer[Any]:
        """The n-gram model as it is now; as the server mixes it."""
        if self.model is None or not self.model.num_tokens:
            return background
        return InContextScorer(background, self.weight, self.model.view())


@dataclass(slots=True)
class _Typing:
    """One prompt in the hands of one arm's typist."""

    arm: Arm
    prompt: Prompt
    typist: Typist
    num_right: int = 0
    num_suggestions: int = 0
    accepted: list[AcceptedText] = field(default_factory=list)

    def take(self, drafts: Sequence[str]) -> None:
        """Accept of the drafts what is right, or type a word."""
        before = self.typist.typed_text.text
        num_right = most_words_right(drafts, self.prompt.continuation[len(before) - len(self.prompt.text) :])
        self.typist.take(drafts)
        self.num_right += num_right
        self.num_suggestions += 1
        if num_right or self.arm.learns_everything:
            self.accepted.append(AcceptedText(end_of(before), self.typist.typed_text.text[len(before) :]))


def main(
    prompts: Annotated[
        list[Path], typer.Option("--prompts", help="JSON lines with prompt and reference, in order. Repeatable.")
    ],
    model: Model = "smollm2-135m",
    dtype: Dtype = "auto",
    weights: Annotated[list[float], typer.Option("--weight", min=0.001, max=1, help="Repeatable.")] = WEIGHTS,
    limit: Annotated[int | None, typer.Option(min=1, help="Prompts to type.")] = None,
    typed_words: Annotated[int, typer.Option(min=0, help="Words of each reference that are typed; 0: all.")] = 10,
    together: Annotated[int, typer.Option(min=1, help="Prompts typed before anything is learned of them.")] = 8,
    everything: Annotated[bool, typer.Option("--everything", help="Also learn all that is typed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure and print.

    Args:
        prompts: files of JSON lines with `prompt` and `reference`, in the order in which they are typed.
        model: as for the server.
        dtype: as for the server.
        weights: of the personal models.
        limit: type at most so many prompts.
        typed_words: of each reference; 0: all.
        together: prompts typed with the models as they were before the first of them.
        everything: have models, too, that learn all that was typed.
        as_json: print JSON instead of tables.
    """
    asked = read_prompts(prompts, limit)
    (spec,) = parse_decoders(_DECODER, "auto", {"num_drafts": [3], "max_tokens": [10]})
    workbench = Workbench(ModelChoice(model, dtype, "auto"), [one.text + one.continuation for one in asked], [spec])
    tokenizer = workbench.engine.tokenizer
    background = workbench.ngram_models.scorer(spec.ngram, "") or UniformScorer(tokenizer.vocab_size)
    arms = make_arms(tokenizer, weights, everything)
    scorers: dict[str, NgramScorer[Any]] = {}
    decoder = EngineDecoder(workbench.engine, workbench.params(spec), scorers.__getitem__)
    for start in track(range(0, len(asked), together), "typing", console=Console(stderr=True)):
        scorers.update({arm.name: arm.scorer(background) for arm in arms})
        type_together(arms, asked[start : start + together], decoder, typed_words or None)
    report = {
        "question": __doc__.splitlines()[0],
        "machine": describe_machine(),
        "settings": {
            "model": workbench.loaded.name,
            "dtype": dtype,
            "prompts": [path.name for path in prompts],
            "num_prompts": len(asked),
            "typed_words": typed_words,
            "together": together,
            "num_drafts": 3,
            "max_tokens": 10,
        },
        "rows": [row_of(arm, arms[0]) for arm in arms],
    }
    _print(report, as_json)


def make_arms(tokenizer: Tokenizer, weights: Sequence[float], everything: bool) -> list[Arm]:
    """The typist without a personal model first."""
    arms = [Arm("without")]
    for weight in weights:
        for learns_everything in (False, True) if everything else (False,):
            learned = "typed" if learns_everything else "accepted"
            model = PersonalModel(tokenizer.encode, tokenizer.eos_token_ids)
            arms.append(Arm(f"{learned}, weight {weight:g}", model, weight, learns_everything))
    return arms


def type_together(arms: Sequence[Arm], prompts: Sequence[Prompt], decoder: Decoder, max_words: int | None) -> None:
    """Have every arm type these prompts, then learn from them.

    Args:
        arms: their models have a say in the drafts that `decoder` makes for a domain of their name.
        prompts: in order.
        decoder: makes the drafts of all of them at once.
        max_words: of each reference; None: all.
    """
    typings = [_Typing(arm, prompt, Typist(prompt, max_words)) for arm in arms for prompt in prompts]
    while waiting := [typing for typing in typings if not typing.typist.is_done]:
        asks = [Ask(one.typist.typed_text.text, one.prompt.id, one.arm.name) for one in waiting]
        for typing, decoded in zip(waiting, decoder.decode(asks), strict=True):
            typing.take([draft.text for draft in decoded.drafts])
    for typing in typings:
        keys, arm = typing.typist.keys, typing.arm
        arm.keys.append((keys.with_drafts, keys.without_drafts))
        arm.words.append((typing.num_right, typing.num_suggestions))
        if arm.model is not None:
            arm.model.add(typing.accepted)


def row_of(arm: Arm, baseline: Arm) -> dict[str, Any]:
    """An arm's figures: of all prompts, of each part of the way, and the gain over the baseline with its bounds."""
    keys, words = _ratios(arm.keys), _ratios(arm.words)
    gain = paired_difference(_saved(keys), _saved(_ratios(baseline.keys)))
    words_gain = paired_difference(words, _ratios(baseline.words))
    return {
        "arm": arm.name,
        "keystroke_savings": _rounded(interval(_saved(keys)).value),
        "gain": [_rounded(value) for value in (gain.value, gain.low, gain.high)],
        "words_right": _rounded(interval(words).value),
        "words_right_gain": [_rounded(value) for value in (words_gain.value, words_gain.low, words_gain.high)],
        "keystroke_savings_by_part": [
            _rounded(interval(_saved(part)).value) for part in np.array_split(keys, NUM_PARTS) if len(part)
        ],
        "tokens_learned": 0 if arm.model is None else arm.model.num_tokens,
    }


def _ratios(pairs: Sequence[tuple[int, int]]) -> NDArray[np.float64]:
    return np.array(pairs, dtype=np.float64)


def _saved(keys: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keystroke savings of each prompt as a ratio: keys saved, keys without drafts."""
    return np.stack([keys[:, 1] - keys[:, 0], keys[:, 1]], axis=1)


def _rounded(value: float) -> float:
    return round(value, 4)


def _print(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(report, indent=2))  # noqa: T201 (standard output is the product here)
        return
    table = Table("learns", "keystrokes saved", "gain [95 %]", "words right", "gain [95 %]", "by quarter", "tokens")
    for row in report["rows"]:
        gains = ["{:+.4f} [{:+.4f}, {:+.4f}]".format(*row[name]) for name in ("gain", "words_right_gain")]
        table.add_row(
            row["arm"],
            f"{row['keystroke_savings']:.4f}",
            gains[0],
            f"{row['words_right']:.4f}",
            gains[1],
            " ".join(f"{value:.3f}" for value in row["keystroke_savings_by_part"]),
            str(row["tokens_learned"]),
        )
    console = Console()
    console.print(table)
    console.print({"machine": report["machine"], "settings": report["settings"]})
