"""Latency of drafts over HTTP for a single user, compared with transformers and llama.cpp.

Prompts of 15 tokens, k drafts of 10. All contenders get each prompt in turns, in another order every round, and every
prompt once, so that no cache knows it. Servers run in other processes and are asked over HTTP; transformers runs in
this process, without HTTP.
"""

import os
import random
import time
from collections.abc import Callable, Sequence
from typing import Annotated

import httpx
import torch
import typer

from superdraft.benchmarks.options import AsJson, ServerDtype, ServerNumThreads
from superdraft.benchmarks.over_http.local_server import ANSWER_TIMEOUT_S, local_server, serve_options
from superdraft.benchmarks.summary import ratio, report, spread, tracked
from superdraft.benchmarks.typing_texts import TEXTS
from superdraft.decoding.loading.catalogue import DEFAULT_MODEL
from superdraft.decoding.loading.loader import ModelOptions, load_model, load_tokenizer
from superdraft.decoding.text.tokenizer import Tokenizer
from superdraft.evaluation.decoders.peers import LLAMA_CPP, parse_peer
from superdraft.evaluation.options import Model, NumDrafts
from superdraft.server.errors import CommandError

PROMPT_TOKENS = 15
NEW_TOKENS = 10
WARM_UP_ROUNDS = 3
PAUSE_S = 0.03  # until threads that spin while they wait for work have stopped
OURS = "superdraft, over HTTP"
PUBLISHED = "superdraft, selection paper"
TRANSFORMERS = "transformers"
PEERS = [TRANSFORMERS]
_TOP_P = 0.9

Prompt = tuple[str, list[int]]

Contender = Callable[[str, list[int]], int]
"""Makes drafts for a prompt, given as text and as token ids; returns their number of tokens."""


def main(
    model: Model = DEFAULT_MODEL,
    num_drafts: NumDrafts = 3,
    rounds: Annotated[int, typer.Option(min=1, help="Prompts to time, each with every contender.")] = 40,
    peer: Annotated[
        list[str],
        typer.Option(help=f"Contender: {TRANSFORMERS}, a server as llamacpp=URL, or none. Repeatable."),
    ] = PEERS,
    peer_threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads of transformers. If not set, all cores.")
    ] = None,
    dtype: ServerDtype = None,
    num_threads: ServerNumThreads = None,
    as_json: AsJson = False,
) -> None:
    """Time drafts over HTTP, in turns with transformers and llama.cpp's server."""
    peer_threads = peer_threads or os.cpu_count() or 1
    contenders = _peers(peer, model, num_drafts, peer_threads)
    prompts = cut_prompts(model, rounds + WARM_UP_ROUNDS)
    options = serve_options(model=model, dtype=dtype, num_threads=num_threads)
    with local_server(options) as url, httpx.Client(base_url=url, timeout=ANSWER_TIMEOUT_S) as http:
        published = _ours(http, num_drafts, selection="paper")
        contenders = {OURS: _ours(http, num_drafts), PUBLISHED: published, **contenders}
        times_ms, num_tokens = take_turns(contenders, prompts)
    settings = {
        "num_drafts": num_drafts,
        "prompt_tokens": PROMPT_TOKENS,
        "new_tokens": NEW_TOKENS,
        "rounds": rounds,
        "peer_threads": peer_threads,
        "serve_options": options,
    }
    rows = [
        {"contender": name, "ms": spread(times), "tokens": num_tokens[name], "to_ours": ratio(times, times_ms[OURS])}
        for name, times in times_ms.items()
    ]
    report(__doc__, settings, as_json, rows=rows)


def _peers(names: Sequence[str], model: str, num_drafts: int, num_threads: int) -> dict[str, Contender]:
    found: dict[str, Contender] = {}
    for name in names:
        if name == TRANSFORMERS:
            for dtype in ("float32", "bfloat16"):
                found[f"{name} {dtype}, {num_drafts} drafts"] = _transformers(model, dtype, num_threads, num_drafts)
        elif name != "none":
            url = parse_peer(name, (LLAMA_CPP,)).url
            found[f"llama.cpp's server at {url}, one draft"] = _llama_cpp_server(url)
    return found


def _transformers(model: str, dtype: str, num_threads: int, num_drafts: int) -> Contender:
    """Nucleus sampling of all drafts in one batch, with transformers' own KV cache. Sets torch's number of threads."""
    torch.set_num_threads(num_threads)
    loaded = load_model(ModelOptions(model=model, device="cpu", dtype=dtype))

    @torch.inference_mode()
    def draft(_: str, token_ids: list[int]) -> int:
        output = loaded.model.generate(
            torch.tensor([token_ids]),
            attention_mask=torch.ones(1, len(token_ids), dtype=torch.long),
            do_sample=True,
            top_p=_TOP_P,
            top_k=0,
            num_return_sequences=num_drafts,
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            pad_token_id=loaded.tokenizer.eos_token_id,
        )
        new = output[:, len(token_ids) :]
        loaded.tokenizer.batch_decode(new)
        return int(new.numel())

    return draft


def _llama_cpp_server(url: str) -> Contender:
    """One greedy draft from llama.cpp's own server, over HTTP."""
    http = httpx.Client(base_url=url, timeout=ANSWER_TIMEOUT_S)

    def draft(_: str, token_ids: list[int]) -> int:
        body = {"prompt": token_ids, "n_predict": NEW_TOKENS, "temperature": 0, "ignore_eos": True}
        response = http.post("/completion", json=body).raise_for_status()
        return int(response.json()["tokens_predicted"])

    return draft


def cut_prompts(model: str, count: int) -> list[Prompt]:
    """Prompts of 15 tokens from the built-in texts, all different, as text and as the model's token ids.

    Raises:
        CommandError: the texts hold fewer prompts.
    """
    tokenizer = load_tokenizer(model)
    codec = Tokenizer(tokenizer, len(tokenizer), ())
    cuts = [(codec.encode(text), start) for start in range(10**3) for text in TEXTS]
    found: dict[str, list[int]] = {}
    for token_ids, start in cuts:
        window = token_ids[start : start + PROMPT_TOKENS]
        text = codec.decode(window)
        if len(window) == PROMPT_TOKENS and codec.encode(text) == window:
            found[text] = window
        if len(found) == count:
            return list(found.items())
    raise CommandError(f"the built-in texts hold {len(found)} prompts of {PROMPT_TOKENS} tokens, {count} are wanted.")


def take_turns(
    contenders: dict[str, Contender], prompts: list[Prompt]
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Let all contenders answer every prompt.

    Returns:
        Milliseconds per contender and timed round, and the number of tokens in each contender's last round.
    """
    times_ms: dict[str, list[float]] = {name: [] for name in contenders}
    num_tokens: dict[str, int] = {}
    order, source = list(contenders), random.Random(0)  # noqa: S311 (the same order in every run)
    for number, (text, token_ids) in enumerate(tracked(prompts, "latency")):
        source.shuffle(order)
        for name in order:
            time.sleep(PAUSE_S)
            started_s = time.perf_counter()
            num_tokens[name] = contenders[name](text, token_ids)
            if number >= WARM_UP_ROUNDS:
                times_ms[name].append((time.perf_counter() - started_s) * 1000)
    return times_ms, num_tokens


def _ours(http: httpx.Client, num_drafts: int, **extra: object) -> Contender:
    """Our server as a contender. Token healing is off, so that it runs the same prompt tokens as the others.

    By default, improbable drafts end early. With the selection "paper", drafts are as long as those of the others.
    """

    def draft(text: str, _: list[int]) -> int:
        body = {"prompt": text, "num_drafts": num_drafts, "max_tokens": NEW_TOKENS, "token_healing": False} | extra
        response = http.post("/v1/drafts", json=body).raise_for_status()
        return int(response.json()["usage"]["completion_tokens"])

    return draft
