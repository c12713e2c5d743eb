"""`superdraft doctor`: checks of an installation."""

import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from superdraft.decoding.errors import SuperdraftError
from superdraft.decoding.memory import free_bytes, shown
from superdraft.ngram_models.errors import BrokenNgramModelError, NgramModelError
from superdraft.server.cli.settings_options import takes_settings
from superdraft.server.errors import CommandError
from superdraft.server.settings import Settings
from superdraft.server.settings_sources import load_settings

if TYPE_CHECKING:
    from superdraft.decoding.text.tokenizer import Tokenizer

MIN_PYTHON = (3, 11)
_ANSWER_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check; `detail` holds the remedy if it is not ok."""

    ok: bool
    detail: str


@takes_settings(
    "home", "model", "runner", "dtype", "ngram_model", "max_model_len", "num_slots", "kv_memory", "host", "port"
)
def main(**flags: Any) -> None:
    """Check the installation: each line is ok or says what to do. Exit code 1 if something is wrong."""
    from superdraft.server.observe.log_config import configure_logging

    configure_logging("error", "console")
    console, is_healthy = Console(highlight=False, soft_wrap=True), True
    settings = load_settings(flags)
    for name, finding in run_checks(settings):
        mark = "[green]ok  [/green]" if finding.ok else "[red]FAIL[/red]"
        console.print(f"{mark} {name:<13}", end=" ")
        console.print(finding.detail, markup=False)
        is_healthy = is_healthy and finding.ok
    console.print("superdraft models list says what other models need here.", markup=False)
    if not is_healthy:
        raise typer.Exit(1)


def run_checks(settings: Settings) -> Iterator[tuple[str, Finding]]:
    """Run the checks in order and yield (name, finding). A check that fails does not stop the others."""
    checks: tuple[tuple[str, Callable[[Settings], Finding]], ...] = (
        ("python", check_python),
        ("torch", check_torch),
        ("kernels", check_kernels),
        ("llama.cpp", check_llama_cpp),
        ("memory", check_memory),
        ("kenlm", check_kenlm),
        ("model", check_model),
        ("start token", check_start_token),
        ("n-gram model", check_ngram_model),
        ("port", check_port),
    )
    for name, check in checks:
        try:
            yield name, check(settings)
        except ModuleNotFoundError as error:
            yield name, Finding(False, f"{error.name} is missing; run make setup")
        except (SuperdraftError, NgramModelError, CommandError) as error:
            yield name, Finding(False, str(error))
        except Exception as error:
            # A broken installation can raise anything, and this command exists to show it.
            yield name, Finding(False, f"{type(error).__name__}: {error}")


def check_python(_: Settings) -> Finding:
    """Check Python's version."""
    if sys.version_info < MIN_PYTHON:
        return Finding(False, f"{platform.python_version()} is too old; install Python 3.11 or later")
    return Finding(True, platform.python_version())


def check_torch(settings: Settings) -> Finding:
    """Check torch and the device that the settings choose."""
    import torch

    has_gpu = torch.cuda.is_available()
    if settings.device.startswith("cuda") and not has_gpu:
        return Finding(
            False, f"torch {torch.__version__} sees no GPU; use --device cpu, or install a CUDA build of torch"
        )
    if has_gpu and settings.device != "cpu":
        return Finding(True, f"{torch.__version__} on {torch.cuda.get_device_name()}")
    return Finding(True, f"{torch.__version__} on the CPU")


def check_kernels(settings: Settings) -> Finding:
    """Check that the kernels for quantised models on a CPU are there, and say how many threads were measured best."""
    from superdraft.decoding.model.native.library import supported_variants, why_unavailable
    from superdraft.decoding.model.threads import num_cores, processor_name, recall, threads_file

    if not supported_variants():
        return Finding(True, f"none for {processor_name()}; torch's serve models in int4")
    problem = why_unavailable()
    if problem is not None:
        return Finding(False, f"{problem}; torch's slower ones serve models in int4. Install g++, or set CXX")
    here = f"{processor_name()}, {num_cores()} cores: "
    measured = [
        f"{num_threads} of {num_cores()} threads are fastest for {key.removeprefix(here)}"
        for key, num_threads in recall(threads_file(settings.home)).items()
        if key.startswith(here)
    ]
    return Finding(True, "; ".join([f"for {supported_variants()[0]}", *measured]))


def check_llama_cpp(_: Settings) -> Finding:
    """Say whether llama.cpp can run GGUF files."""
    from superdraft.decoding.errors import ModelLoadError
    from superdraft.decoding.model.llamacpp.library import library

    try:
        found = library()
    except ModelLoadError as error:
        if find_spec("llama_cpp") is not None:
            return Finding(False, str(error))
        return Finding(True, "not installed. pip install '.[llamacpp]' adds it")
    return Finding(True, f"llama-cpp-python {found.__version__} runs GGUF files as they are")


def check_memory(settings: Settings) -> Finding:
    """Check that there is free memory for the model that the settings name, and its KV cache."""
    from superdraft.decoding.loading.loader import model_size
    from superdraft.decoding.loading.model_size import BASE_BYTES, cache_bytes, needed_bytes
    from superdraft.decoding.model.llamacpp.runner import MAX_DEFAULT_SLOTS, logits_bytes
    from superdraft.decoding.runner_choice import gguf_for_llama_cpp
    from superdraft.server.cli.models import torch_dtype
    from superdraft.server.loading import model_options

    free_now, size = free_bytes(), model_size(settings.model, settings.home)
    free = "an unknown amount is free" if free_now is None else f"{shown(free_now)} are free"
    if size is None:
        return Finding(True, f"{free}; the size of {settings.model} is not known before it is fetched")
    config, gguf = settings.engine_config(), gguf_for_llama_cpp(model_options(settings))
    if gguf is not None and gguf.is_file():
        cache = cache_bytes(size, "float16", config, max_slots=MAX_DEFAULT_SLOTS)
        needed, how = BASE_BYTES + gguf.stat().st_size + cache + logits_bytes(size.vocab_size), "with llama.cpp"
    else:  # torch would run the model, or it must be fetched first
        dtype = torch_dtype(settings)
        needed, how = needed_bytes(size, dtype, config, is_gguf=settings.model.endswith(".gguf")), f"as {dtype}"
    found = f"{free}, {settings.model} needs up to {shown(needed)} {how} (estimate, with a full KV cache)"
    if free_now is None or needed <= free_now:
        return Finding(True, found)
    return Finding(False, f"{found}; close other programs, lower --kv-memory, or take a smaller model")


def check_kenlm(_: Settings) -> Finding:
    """Check KenLM's maximum order, which is fixed when it is compiled, by loading the shipped model."""
    from superdraft.decoding.loading.catalogue import DEFAULT_MODEL
    from superdraft.ngram_models.store.manifest import Manifest
    from superdraft.ngram_models.store.registry import find_ngram_model, open_scorer

    folder = find_ngram_model(DEFAULT_MODEL)
    manifest = Manifest.read(folder)
    try:
        open_scorer(folder, manifest)
    except BrokenNgramModelError as error:
        remedy = (
            "If KenLM was compiled for lower orders: MAX_ORDER=6 pip install --force-reinstall --no-binary kenlm kenlm"
        )
        return Finding(False, f"{error} {remedy}")
    return Finding(True, f"loads models of order {manifest.order}")


def check_model(settings: Settings) -> Finding:
    """Check the model's files."""
    from superdraft.decoding.loading.source import resolve
    from superdraft.decoding.loading.store import ModelStore

    source = resolve(settings.model, settings.home)
    if source.is_known:
        fault = ModelStore(settings.home).verify(source.name)
        if fault is not None:
            return Finding(False, f"{source.name}: {fault}; run superdraft models pull {source.name}")
        return Finding(True, f"{source.name} is complete in {source.path}")
    if source.path is not None:
        return Finding(True, f"{settings.model} exists; its files are checked when it is served")
    what = f"{source.name} is {source.location}" if source.listed is not None else f"{source.name} is taken as a hub id"
    where = (
        "it is fetched from the hub when it is served" if source.cached is None else f"it is cached in {source.cached}"
    )
    return Finding(True, f"{what}; {where}")


def check_start_token(settings: Settings) -> Finding:
    """Check for a token that begins every text prompt."""
    tokenizer = _tokenizer(settings)
    if tokenizer is None:
        return _needs_model(settings)
    own = [token_id for token_id in tokenizer.encode("") if not tokenizer.token_bytes[token_id]]
    if own:
        named = ", ".join(f"{tokenizer.token_text(token_id)} ({token_id})" for token_id in own)
        return Finding(True, f"the tokenizer itself begins every text with {named}")
    token_id = tokenizer.start_token_id
    if token_id is None:
        return Finding(True, "the tokenizer has none; the first words of a text are predicted badly")
    return Finding(True, f"{_shown(tokenizer.token_text(token_id))} ({token_id}) begins every text prompt")


def _shown(token: str) -> str:
    """A token's text on one line."""
    return token if token.isprintable() else repr(token)


def check_ngram_model(settings: Settings) -> Finding:
    """Check that the n-gram model loads and is for the model's tokenizer."""
    from superdraft.ngram_models.vocabulary import tokenizer_fingerprint
    from superdraft.server.loading import choose_ngram_model

    if settings.ngram_model == "none":
        return Finding(True, "off")
    tokenizer = _tokenizer(settings)
    if tokenizer is None:
        return _needs_model(settings)
    fingerprint = tokenizer_fingerprint(tokenizer.vocabulary)
    ngram_model = choose_ngram_model(settings, fingerprint)
    if ngram_model is None:
        return Finding(True, f"none is shipped for {settings.model}; superdraft ngram build makes one")
    manifest = ngram_model.manifest
    return Finding(True, f"{manifest.name} (order {manifest.order}) loads and fits the tokenizer")


def check_port(settings: Settings) -> Finding:
    """Check that the server's port is free, or that a server of this program answers there."""
    from superdraft.server.serving import bind

    try:
        bind(settings.host, settings.port).close()
    except CommandError as error:
        running = _running_server(settings)
        return Finding(False, str(error)) if running is None else running
    return Finding(True, f"{settings.host}:{settings.port} is free")


def _running_server(settings: Settings) -> Finding | None:
    """What the server at the settings' address says about itself; None if another program answers."""
    import httpx

    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104
    url = f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"
    try:
        answer = httpx.get(f"{url}/ready", timeout=_ANSWER_TIMEOUT_S, trust_env=False).json()
        status, model = answer["status"], answer["model"]
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return None
    return Finding(status == "ready", f"Superdraft runs at {url} with {model}; it is {status}")


def _tokenizer(settings: Settings) -> "Tokenizer | None":
    """The model's tokenizer; None if the model must be fetched first."""
    from superdraft.decoding.loading.loader import load_tokenizer
    from superdraft.decoding.loading.source import resolve
    from superdraft.decoding.text.tokenizer import Tokenizer

    source = resolve(settings.model, settings.home)
    if source.listed is not None and source.cached is None:
        return None
    return Tokenizer(load_tokenizer(settings.model, home=settings.home, trust_remote_code=settings.trust_remote_code))


def _needs_model(settings: Settings) -> Finding:
    return Finding(False, f"not checked, because it needs the model; run superdraft models pull {settings.model}")
