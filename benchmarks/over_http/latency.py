"""Latency of drafts over HTTP for a single user, compared with transformers and llama.cpp.

Prompts of 15 tokens, k drafts of 10. All contenders get each prompt in turns, in another order every round, and every
prompt once, so that no cache knows it. The server runs in another process and is asked over HTTP; the others run in
this process, without HTTP. Then a text is typed key by key: each key press requests drafts and waits for them, and the
text before it is in the server's prefix cache.
"""

import os
import random
import time
from collections.abc import Iterator
from typing import Annotated, Any

import httpx
import typer
from rich.table import Table

from superdraft.benchmarks.options import AsJson, Model, NumDrafts, ServerDtype, ServerNumThreads
from superdraft.benchmarks.over_http.local_server import ANSWER_TIMEOUT_S, local_server, serve_options
from superdraft.benchmarks.peers import INSTALL_LLAMA_CPP, Contender, llama_cpp_peer, transformers_peer
from superdraft.benchmarks.summary import (
    make_report,
    percentile,
    plain_table,
    print_report,
    ratio,
    shown,
    spread,
    tracked,
)
from superdraft.benchmarks.typing_texts import TEXTS
from superdraft.decoding.loading.loader import load_tokenizer
from superdraft.decoding.loading.store import DEFAULT_MODEL
from superdraft.decoding.text.tokenizer import Tokenizer
from superdraft.evaluation.decoders.peers import LLAMA_CPP, parse_peer
from superdraft.server.errors import CommandError

PROMPT_TOKENS = 15
NEW_TOKENS = 10
KEY_PRESS_TOKENS = 8
WARM_UP_ROUNDS = 3
PAUSE_S = 0.03  # until threads that spin while they wait for work have stopped
OURS = "superdraft, over HTTP"
PUBLISHED = "superdraft, selection paper"
PEERS = ["transformers", "llama.cpp"]

Prompt = tuple[str, list[int]]


def main(
    model: Model = DEFAULT_MODEL,
    num_drafts: NumDrafts = 3,
    rounds: Annotated[int, typer.Option(min=1, help="Prompts to time, each with every contender.")] = 40,
    keys: Annotated[int, typer.Option(min=1, help="Key presses to time.")] = 200,
    peer: Annotated[
        list[str],
        typer.Option(help="Contender: transformers, llama.cpp, a server as llamacpp=URL, or none. Repeatable."),
    ] = PEERS,
    peer_threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads of transformers and llama.cpp. If not set, all cores.")
    ] = None,
    dtype: ServerDtype = None,
    num_threads: ServerNumThreads = None,
    as_json: AsJson = False,
) -> None:
    """Time drafts over HTTP, in turns with transformers and llama.cpp (which must be installed), then key presses."""
    peer_threads = peer_threads or os.cpu_count() or 1
    servers = [parse_peer(name, (LLAMA_CPP,)).url for name in peer if "=" in name]
    names = [name for name in peer if name != "none" and "=" not in name]
    contenders = _peers(model, num_drafts, names, peer_threads)
    contenders |= {f"llama.cpp's server at {url}, one draft": _llama_cpp_server(url) for url in servers}
    prompts = cut_prompts(model, rounds + WARM_UP_ROUNDS)
    options = serve_options(model=model, dtype=dtype, num_threads=num_threads)
    with local_server(options) as url, httpx.Client(base_url=url, timeout=ANSWER_TIMEOUT_S) as http:
        published = _ours(http, num_drafts, selection="paper")
        contenders = {OURS: _ours(http, num_drafts), PUBLISHED: published, **contenders}
        times_ms, num_tokens = take_turns(contenders, prompts)
        key_ms = type_keys(http, num_drafts, keys)
    settings = {
        "num_drafts": num_drafts,
        "prompt_tokens": PROMPT_TOKENS,
        "new_tokens": NEW_TOKENS,
        "rounds": rounds,
        "peer_threads": peer_threads,
        "serve_options": options,
        "llama_cpp_build": INSTALL_LLAMA_CPP,
    }
    report = make_report(
        __doc__,
        settings,
        rows=[{"contender": name, "ms": spread(times), "tokens": num_tokens[name]} for name, times in times_ms.items()],
        ratios=[{"contender": name, **found} for name, found in ratios(times_ms).items()],
        key_presses=_key_figures(key_ms),
    )
    print_report(report, _tables(report), as_json)


def _llama_cpp_server(url: str) -> Contender:
    """One greedy draft from llama.cpp's own server, over HTTP."""
    http = httpx.Client(base_url=url, timeout=ANSWER_TIMEOUT_S)

    def draft(_: str, token_ids: list[int]) -> int:
        body = {"prompt": token_ids, "n_predict": NEW_TOKENS, "temperature": 0, "ignore_eos": True}
        response = http.post("/completion", json=body).raise_for_status()
        return int(response.json()["tokens_predicted"])

    return draft


def _peers(model: str, num_drafts: int, names: list[str], num_threads: int) -> dict[str, Contender]:
    unknown = sorted(set(names) - set(PEERS))
    if unknown:
        raise CommandError(f"--peer must be {', '.join(PEERS)}, llamacpp=URL or none, got {unknown[0]}.")
    found: dict[str, Contender] = {}
    if "llama.cpp" in names:  # first, because it may not be installed
        found["llama.cpp, one draft"] = llama_cpp_peer(model, num_threads, 1, NEW_TOKENS)
        found[f"llama.cpp, {num_drafts} drafts in turn"] = llama_cpp_peer(model, num_threads, num_drafts, NEW_TOKENS)
    if "transformers" in names:
        for dtype in ("float32", "bfloat16"):
            name = f"transformers {dtype}, {num_drafts} drafts"
            found[name] = transformers_peer(model, dtype, num_threads, num_drafts, NEW_TOKENS)
    return found


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


def ratios(times_ms: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """The other contenders' times divided by ours."""
    ours = times_ms[OURS]
    return {name: ratio(times, ours) for name, times in times_ms.items() if name != OURS}


def type_keys(http: httpx.Client, num_drafts: int, count: int) -> list[float]:
    """Milliseconds from a key press to its drafts, for `count` key presses; the first of each text is not timed."""
    times_ms: list[float] = []
    for prompt, is_new in tracked(_keys(count), "typing", total=count):
        time.sleep(PAUSE_S)
        body = {"prompt": prompt, "num_drafts": num_drafts, "max_tokens": KEY_PRESS_TOKENS, "session_id": "latency"}
        started_s = time.perf_counter()
        http.post("/v1/drafts", json=body).raise_for_status()
        if not is_new:
            times_ms.append((time.perf_counter() - started_s) * 1000)
    return times_ms


def _key_figures(times_ms: list[float]) -> dict[str, float]:
    return {
        "count": len(times_ms),
        "new_tokens": KEY_PRESS_TOKENS,
        "p50_ms": round(percentile(times_ms, 50), 1),
        "p95_ms": round(percentile(times_ms, 95), 1),
    }


def _keys(count: int) -> Iterator[tuple[str, bool]]:
    """Texts before the cursor, and whether each is the first of its text; `count` others follow a key press."""
    share = -(-count // len(TEXTS))
    for text in TEXTS:
        first = len(text) // 4
        last = first + min(share, count)
        count -= last - first
        for end in range(first, last + 1):
            yield text[:end], end == first


def _ours(http: httpx.Client, num_drafts: int, **extra: object) -> Contender:
    """Our server as a contender. Token healing is off, so that it runs the same prompt tokens as the others.

    By default, improbable drafts end early. With the selection "paper", drafts are as long as those of the others.
    """

    def draft(text: str, _: list[int]) -> int:
        body = {"prompt": text, "num_drafts": num_drafts, "max_tokens": NEW_TOKENS, "token_healing": False} | extra
        response = http.post("/v1/drafts", json=body).raise_for_status()
        return int(response.json()["usage"]["completion_tokens"])

    return draft


def _tables(report: dict[str, Any]) -> list[Table]:
    latency = Table("contender", "ms", "25-75 % of rounds", "tokens", "ratio to ours", "25-75 % of rounds")
    found = {row["contender"]: row for row in report["ratios"]}
    for row in report["rows"]:
        name = row["contender"]
        times = shown(found[name]) if name in found else ("1", "")
        latency.add_row(name, *shown(row["ms"], 1), str(row["tokens"]), *times)
    return [latency, plain_table([report["key_presses"]], heads=("key presses", "new tokens", "p50 ms", "p95 ms"))]
