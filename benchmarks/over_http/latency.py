"""How long one person waits for drafts, over HTTP, and how long with what people use today.

Prompts of 15 tokens, k drafts of 10. All contenders get each prompt in turns, in another order every round, and every
prompt once, so that no cache knows it. The server runs in another process and is asked over HTTP; the others run in
this one, without HTTP. Then a text is typed key by key, each key press asking for drafts and waiting for them: what
stood there before is in the server's prefix cache.
"""

import os
import random
import time
from collections.abc import Iterator
from typing import Any

import httpx
from rich.console import Console
from rich.progress import track
from rich.table import Table

from superdraft.benchmarks.machine import describe_machine
from superdraft.benchmarks.over_http.local_server import local_server
from superdraft.benchmarks.peers import INSTALL_LLAMA_CPP, Contender, llama_cpp_peer, transformers_peer
from superdraft.benchmarks.summary import percentile, print_report, ratio, shown, spread
from superdraft.benchmarks.typing_texts import TEXTS
from superdraft.decoding.loading.loader import load_tokenizer
from superdraft.decoding.text.tokenizer import Tokenizer
from superdraft.server.errors import CommandError

PROMPT_TOKENS = 15
NEW_TOKENS = 10
KEY_PRESS_TOKENS = 8
WARM_UP_ROUNDS = 3
PAUSE_S = 0.03  # threads that wait for more work by spinning would take the next contender's time
ANSWER_TIMEOUT_S = 60.0
OURS = "superdraft, over HTTP"
PUBLISHED = "superdraft, selection paper"
PEERS = ("transformers", "llama.cpp")

Prompt = tuple[str, list[int]]


def main(
    *,
    model: str,
    num_drafts: int,
    rounds: int,
    keys: int,
    peers: list[str],
    peer_threads: int | None,
    serve_options: list[str],
    as_json: bool,
) -> None:
    """Measure and print.

    Args:
        model: as for the server; one with a GGUF file if llama.cpp is a peer.
        num_drafts: k.
        rounds: prompts that are timed.
        keys: key presses that are timed.
        peers: of `PEERS`.
        peer_threads: of llama.cpp and transformers; None: as many as there are cores.
        serve_options: for the server.
        as_json: print JSON instead of tables.

    Raises:
        CommandError: a peer is not installed or unknown.
    """
    num_threads = peer_threads or os.cpu_count() or 1
    contenders = _peers(model, num_drafts, peers, num_threads)
    prompts = cut_prompts(model, rounds + WARM_UP_ROUNDS)
    options = ["--model", model, *serve_options]
    with local_server(options) as url, httpx.Client(base_url=url, timeout=ANSWER_TIMEOUT_S) as http:
        published = _ours(http, num_drafts, selection="paper")
        contenders = {OURS: _ours(http, num_drafts), PUBLISHED: published, **contenders}
        times_ms, num_tokens = take_turns(contenders, prompts)
        key_ms = type_keys(http, num_drafts, keys)
    report = {
        "question": __doc__.splitlines()[0],
        "machine": describe_machine(),
        "settings": {
            "model": model,
            "num_drafts": num_drafts,
            "prompt_tokens": PROMPT_TOKENS,
            "new_tokens": NEW_TOKENS,
            "rounds": rounds,
            "peer_threads": num_threads,
            "serve_options": serve_options,
            "llama_cpp_build": INSTALL_LLAMA_CPP,
        },
        "rows": [
            {"contender": name, "ms": spread(times), "tokens": num_tokens[name]} for name, times in times_ms.items()
        ],
        "ratios": [{"contender": name, **found} for name, found in ratios(times_ms).items()],
        "key_presses": {
            "new_tokens": KEY_PRESS_TOKENS,
            "count": len(key_ms),
            "p50_ms": round(percentile(key_ms, 50), 1),
            "p95_ms": round(percentile(key_ms, 95), 1),
        },
    }
    print_report(report, _tables(report), as_json)


def _peers(model: str, num_drafts: int, names: list[str], num_threads: int) -> dict[str, Contender]:
    unknown = sorted(set(names) - set(PEERS))
    if unknown:
        raise CommandError(f"--peer must be one of {', '.join(PEERS)}, got {unknown[0]}.")
    found: dict[str, Contender] = {}
    if "llama.cpp" in names:  # first: it may be missing
        found["llama.cpp, one draft"] = llama_cpp_peer(model, num_threads, 1, NEW_TOKENS)
        found[f"llama.cpp, {num_drafts} drafts in turn"] = llama_cpp_peer(model, num_threads, num_drafts, NEW_TOKENS)
    if "transformers" in names:
        for dtype in ("float32", "bfloat16"):
            name = f"transformers {dtype}, {num_drafts} drafts"
            found[name] = transformers_peer(model, dtype, num_threads, num_drafts, NEW_TOKENS)
    return found


def cut_prompts(model: str, count: int) -> list[Prompt]:
    """Prompts of 15 tokens from the built-in texts, all beginning differently, as text and as the model's token ids.

    Raises:
        CommandError: the texts do not hold so many.
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
        For each contender the milliseconds of every round that counts, and the tokens of the last one.
    """
    times_ms: dict[str, list[float]] = {name: [] for name in contenders}
    num_tokens: dict[str, int] = {}
    order, source = list(contenders), random.Random(0)  # noqa: S311 (the same order in every run)
    for number, (text, token_ids) in enumerate(track(prompts, "latency", console=Console(stderr=True))):
        source.shuffle(order)
        for name in order:
            time.sleep(PAUSE_S)
            started_s = time.perf_counter()
            num_tokens[name] = contenders[name](text, token_ids)
            if number >= WARM_UP_ROUNDS:
                times_ms[name].append((time.perf_counter() - started_s) * 1000)
    return times_ms, num_tokens


def ratios(times_ms: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """How many times as long as ours the others take."""
    ours = times_ms[OURS]
    return {name: ratio(times, ours) for name, times in times_ms.items() if name != OURS}


def type_keys(http: httpx.Client, num_drafts: int, count: int) -> list[float]:
    """Milliseconds from a key press to its drafts, of `count` of them; the first of each text, a new prompt, aside."""
    times_ms: list[float] = []
    for prompt, is_new in track(_keys(count), "typing", total=count, console=Console(stderr=True)):
        time.sleep(PAUSE_S)
        body = {"prompt": prompt, "num_drafts": num_drafts, "max_tokens": KEY_PRESS_TOKENS, "session_id": "latency"}
        started_s = time.perf_counter()
        http.post("/v1/drafts", json=body).raise_for_status()
        if not is_new:
            times_ms.append((time.perf_counter() - started_s) * 1000)
    return times_ms


def _keys(count: int) -> Iterator[tuple[str, bool]]:
    """What stands before the cursor after each key, a part of every text, until `count` of them follow on another."""
    share = -(-count // len(TEXTS))
    for text in TEXTS:
        first = len(text) // 4
        last = first + min(share, count)
        count -= last - first
        for end in range(first, last + 1):
            yield text[:end], end == first


def _ours(http: httpx.Client, num_drafts: int, **extra: object) -> Contender:
    """Drafts for as many prompt tokens as the others: no half typed word is taken back.

    By default improbable drafts end early; those of the selection "paper" have as many tokens as the others'.
    """

    def draft(text: str, _: list[int]) -> int:
        body = {"prompt": text, "num_drafts": num_drafts, "max_tokens": NEW_TOKENS, "token_healing": False} | extra
        response = http.post("/v1/drafts", json=body).raise_for_status()
        return int(response.json()["usage"]["completion_tokens"])

    return draft


def _tables(report: dict[str, Any]) -> list[Table]:
    latency = Table("contender", "ms", "25-75 % of rounds", "tokens", "times ours", "25-75 % of rounds")
    found = {row["contender"]: row for row in report["ratios"]}
    for row in report["rows"]:
        name = row["contender"]
        times = shown(found[name]) if name in found else ("1", "")
        latency.add_row(name, *shown(row["ms"], 1), str(row["tokens"]), *times)
    keys = report["key_presses"]
    typing = Table("key presses", "new tokens", "p50 ms", "p95 ms")
    typing.add_row(str(keys["count"]), str(keys["new_tokens"]), str(keys["p50_ms"]), str(keys["p95_ms"]))
    return [latency, typing]
