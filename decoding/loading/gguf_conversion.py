"""GGUF files: reading them into a transformers model and tokenizer, and converting them to safetensors."""

import contextlib
import io
from pathlib import Path
from typing import Any

import torch
import transformers
from gguf import GGUFReader
from tokenizers import pre_tokenizers

from superdraft.decoding.loading.quiet import quiet_transformers

# Metadata keys: how text is split before byte-pair encoding, and the id of the token that ends a text.
_PRE_TOKENIZER_KEY = "tokenizer.ggml.pre"
_EOS_KEY = "tokenizer.ggml.eos_token_id"
_DOCUMENT_SEPARATOR = "<|endoftext|>"


def load_gguf_model(path: Path, **options: Any) -> tuple[transformers.PreTrainedModel, dict[str, Any]]:
    """Load the model of a GGUF file, with its quantised blocks expanded.

    Args:
        path: the `.gguf` file.
        options: further arguments of `from_pretrained`, such as `dtype`.

    Returns:
        The model, and transformers' loading info.
    """
    # The GGUF reader draws a progress bar of its own that transformers' settings do not affect.
    with quiet_transformers(), contextlib.redirect_stderr(io.StringIO()):
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, output_loading_info=True, **options
        )
    return model, info


def load_gguf_tokenizer(path: Path) -> transformers.PreTrainedTokenizerBase:
    """Load the tokenizer of a GGUF file, corrected where transformers does not follow the file.

    transformers splits text for every byte-level vocabulary as GPT-2 does. SmolLM's tokenizer splits off each digit
    first, which also keeps the spaces before a number together. Some versions of transformers use GPT-2's end-of-text
    token instead of the file's, and strip spaces before punctuation when they decode.
    """
    with quiet_transformers():
        tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    tokenizer.clean_up_tokenization_spaces = False
    reader = GGUFReader(path)
    eos_id = reader.get_field(_EOS_KEY)
    if eos_id is not None:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(int(eos_id.contents()))
    pre_tokenizer = reader.get_field(_PRE_TOKENIZER_KEY)
    if pre_tokenizer is not None and pre_tokenizer.contents() == "smollm":
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    return tokenizer


def convert_gguf(path: Path, folder: Path) -> None:
    """Write a GGUF model to `folder` as float32 safetensors, with its config and tokenizer.

    The weights are exactly the GGUF file's expanded ones, so both give the same logits. The new config does not mention
    that they were quantised.

    Args:
        path: the `.gguf` file.
        folder: an existing folder.
    """
    loaded, _ = load_gguf_model(path, dtype=torch.float32)
    tokenizer = load_gguf_tokenizer(path)
    config = transformers.AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    # save_pretrained refuses a model loaded from quantised weights, so the tensors are moved to a fresh one.
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = _generation_config(loaded.generation_config, tokenizer)
    with quiet_transformers():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _generation_config(
    found: transformers.GenerationConfig, tokenizer: transformers.PreTrainedTokenizerBase
) -> transformers.GenerationConfig:
    """The file's special ids, with the document separator added to the ids that end a text.

    A GGUF file names one end-of-text token. In a chat model this is the end of a turn (SmolLM2: `<|im_end|>`, id 2),
    but plain text ends like the documents it was trained on (`<|endoftext|>`, id 0).
    """
    eos_ids = [tokenizer.eos_token_id]
    separator = tokenizer.get_vocab().get(_DOCUMENT_SEPARATOR)
    if separator is not None and separator not in eos_ids:
        eos_ids.append(separator)
    return transformers.GenerationConfig(
        bos_token_id=found.bos_token_id, eos_token_id=eos_ids, pad_token_id=found.pad_token_id
    )
