"""Everything about a GPU in one run: first whether the drafts are right, then how fast they are.

It needs no network and no model: weights are random, made on the GPU from a transformers config. From a plain checkout,
nothing being installed, it runs where torch, transformers, rich, filelock, platformdirs and kenlm are (the wheel of
`ufal-kenlm` has the module `kenlm` ready)::

    make links
    PYTHONPATH=build/typing python3 -m superdraft.benchmarks.gpu --output gpu.json

or `superdraft bench gpu`. `--device cpu --shapes tiny` tries the code out.
"""

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

QUESTION = "Whether drafts on a GPU are those of the CPU, and how fast they are."
CPU_NOTE = "On a CPU: shapes and code only, no figures to quote."

# In their order.
PART_NAMES = (
    "machine",
    "correctness",
    "roofline",
    "step",
    "superposed",
    "typing",
    "load",
    "capacity",
    "generate",
    "attention",
    "batching",
    "step-int4",
    "step-tuned",
    "load-tuned",
    "profile-load",
    "profile-step",
)
DEFAULT_OUTPUT = Path("gpu.json")
DEFAULT_NGRAM_MODEL = "smollm2-135m"


class OptionError(ValueError):
    """A part or a combination that there is not."""


def main(
    *,
    device: str,
    shapes: str,
    parts: Sequence[str],
    minutes: float | None,
    ngram_model: str,
    output: Path,
    resumes: bool = False,
    start_anew: Callable[[list[str]], None] | None = None,
) -> bool:
    """Run the parts, print what they find and write it down.

    Args:
        device: "cuda", "cuda:N" or "cpu".
        shapes: "full", or "tiny" to try the code out.
        parts: names of `PART_NAMES`; none: all.
        minutes: no part is begun after so many; None: no limit.
        ngram_model: name or folder of an n-gram model, whatever tokenizer it is for; "none": none.
        output: the report, as JSON, written after each part.
        resumes: go on with the report that is there.
        start_anew: goes on in a new process, given this program's arguments; None: takes this process's place.

    Returns:
        Whether the drafts are right and no part failed.

    Raises:
        OptionError: an option is none.
    """
    if unknown := [name for name in parts if name not in PART_NAMES]:
        raise OptionError(f"There is no part {unknown[0]!r}, only {', '.join(PART_NAMES)}.")
    if device == "cpu" and shapes != "tiny":
        raise OptionError("On a CPU only the tiny shapes are run: add --shapes tiny.")
    # Nothing is fetched; else transformers asks the hub for kernels and waits for an answer.
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch

    from superdraft.benchmarks import gpu_parts, gpu_run, gpu_timing

    if device != "cpu" and not torch.cuda.is_available():
        raise OptionError("torch sees no GPU here. --device cpu --shapes tiny tries the code out.")
    shared = gpu_parts.make_benchmark(device, shapes, _load_scorer(ngram_model))
    report: dict[str, Any] = {
        "question": QUESTION,
        "settings": {"device": device, "shapes": shapes, "ngram_model": ngram_model, "sizes": asdict(shared.sizes)},
        "begun_s": time.time(),
        "parts": {},
    }
    if device == "cpu":
        report["note"] = CPU_NOTE
        print(CPU_NOTE)  # noqa: T201 (standard output is the product here)
    if resumes:
        report = json.loads(output.read_text(encoding="utf-8"))
    budget_s = None if minutes is None else 60 * minutes
    runner = gpu_run.Runner(shared, gpu_parts.PARTS, report, gpu_run.write_json(output), budget_s)
    with gpu_timing.one_thread() if device == "cpu" else contextlib.nullcontext():
        is_usable = runner.run(parts or PART_NAMES)
    if not is_usable:
        arguments = ["--device", device, "--shapes", shapes, "--ngram-model", ngram_model, "--output", str(output)]
        arguments += ["--parts", ",".join(parts)] if parts else []
        arguments += ["--minutes", str(minutes)] if minutes is not None else []
        (start_anew or _start_anew)([*arguments, "--resume"])
    return all(part["status"] != "failed" for part in report["parts"].values())


def _load_scorer(name: str) -> Any:
    if name == "none":
        return None
    try:
        from superdraft.ngram_models.manifest import Manifest
        from superdraft.ngram_models.registry import find_ngram_model, open_scorer
    except ModuleNotFoundError as error:
        raise OptionError(
            f"{error}. The wheel of ufal-kenlm has kenlm ready built; --ngram-model none does without."
        ) from None
    folder = find_ngram_model(name)
    return open_scorer(folder, Manifest.read(folder))


def _start_anew(arguments: list[str]) -> None:
    """Go on in a new process in this one's place: what is left on the GPU goes with the old one."""
    sys.stdout.flush()
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.execv(sys.executable, [sys.executable, "-m", "superdraft.benchmarks.gpu", *arguments])  # noqa: S606


def parse(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """The arguments of `main` from those of the command line."""
    parser = argparse.ArgumentParser(prog="gpu", description="Check, then time, drafts on a GPU.")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu")
    parser.add_argument("--shapes", default="full", choices=("full", "tiny"))
    parser.add_argument("--parts", default="", help=f"with commas between them, of {', '.join(PART_NAMES)}")
    parser.add_argument("--minutes", type=float, help="begin no part after so many")
    parser.add_argument("--ngram-model", default=DEFAULT_NGRAM_MODEL, help="name or folder, or none")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="where the report goes, as JSON")
    parser.add_argument("--resume", action="store_true", dest="resumes", help="go on with the report that is there")
    given = vars(parser.parse_args(arguments))
    return given | {"parts": split_parts(given["parts"])}


def split_parts(names: str) -> list[str]:
    """Names of parts with commas between them."""
    return [name for name in names.split(",") if name]


if __name__ == "__main__":
    try:
        sys.exit(0 if main(**parse()) else 1)
    except OptionError as error:
        sys.exit(str(error))
