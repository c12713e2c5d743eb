"""GGUF files: reading them into a transformers model, and converting them to safetensors."""

import contextlib
import ctypes
import functools
import gc
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import torch
import transformers

from superdraft.decoding.errors import BrokenModelError
from superdraft.decoding.loading.gguf_config import gguf_config
from superdraft.decoding.loading.gguf_tokenizer import load_gguf_tokenizer
from superdraft.decoding.loading.quiet import quiet_transformers

_DOCUMENT_SEPARATOR = "<|endoftext|>"


@contextlib.contextmanager
def parsed_once() -> Iterator[None]:
    """Inside the context, the metadata of a GGUF file is parsed once, however often the file is read.

    transformers makes a new reader for the config, the tokenizer and the weights, some of them twice. For a vocabulary
    of 152,000 tokens each takes 6 s. The context may be entered again inside itself.
    """
    reader = gguf.GGUFReader
    if not isinstance(reader, type):
        yield
        return
    parsed = functools.lru_cache(maxsize=1)(reader)
    # transformers looks the class up whenever it needs a reader.
    gguf.GGUFReader = lambda path, *mode: parsed(Path(path).resolve(), *mode)
    try:
        yield
    finally:
        gguf.GGUFReader = reader
        _return_memory()


def _return_memory() -> None:
    """Return unused memory to the system: a million small objects of the reader, and expanded weights."""
    gc.collect()  # models and readers refer to themselves
    with contextlib.suppress(AttributeError, OSError, TypeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)


def load_gguf_model(path: Path, **options: Any) -> tuple[transformers.PreTrainedModel, dict[str, Any]]:
    """Load the model of a GGUF file, with its quantised blocks expanded.

    Args:
        path: the `.gguf` file.
        options: further arguments of `from_pretrained`, such as `dtype`.

    Returns:
        The model, and transformers' loading info.
    """
    config = gguf_config(path)
    # The GGUF reader draws a progress bar of its own that transformers' settings do not affect.
    with quiet_transformers(), contextlib.redirect_stderr(io.StringIO()):
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, config=config, output_loading_info=True, **options
        )
    return model, info


def convert_gguf(path: Path, folder: Path, dtype: torch.dtype = torch.float32, **options: Any) -> None:
    """Write a GGUF model to `folder` as safetensors, with its config and tokenizer.

    The weights are exactly the GGUF file's expanded ones, so both give the same logits. The new config does not mention
    that they were quantised.

    Args:
        path: the `.gguf` file.
        folder: an existing folder.
        dtype: the type of the weights.
        options: further arguments of `save_pretrained`.

    Raises:
        BrokenModelError: the file lacks weights of the model.
    """
    with parsed_once():
        tokenizer = load_gguf_tokenizer(path)
        tokenizer.save_pretrained(folder)
        eos_ids = _eos_ids(tokenizer)
        del tokenizer
        _return_memory()  # expanding takes more memory than all else
        loaded, info = load_gguf_model(path, dtype=dtype)
        config = gguf_config(path)
    if absent := sorted(info["missing_keys"]):  # transformers fills them with random numbers
        raise BrokenModelError(f"{path} lacks {len(absent)} of its weights, for example {absent[0]}.")
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    # save_pretrained refuses a model loaded from quantised weights, so the tensors are moved to a fresh one.
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    found = loaded.generation_config
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=found.bos_token_id, eos_token_id=eos_ids, pad_token_id=found.pad_token_id
    )
    with quiet_transformers():
        model.save_pretrained(folder, **options)


def _eos_ids(tokenizer: transformers.PreTrainedTokenizerBase) -> list[int]:
    """The file's id for the end of a text, and the document separator.

    A GGUF file names one end-of-text token. In a chat model this is the end of a turn (SmolLM2: `<|im_end|>`, id 2),
    but plain text ends like the documents it was trained on (`<|endoftext|>`, id 0).
    """
    eos_ids = [tokenizer.eos_token_id]
    separator = tokenizer.get_vocab().get(_DOCUMENT_SEPARATOR)
    if separator is not None and separator not in eos_ids:
        eos_ids.append(separator)
    return eos_ids
