"""Configs, tokenizers and weights as transformers reads them.

Imported late, by those who need it: transformers takes seconds, and GGUF files are read without it.
"""

import contextlib
import io
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from torch import Tensor, nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from superdraft.decoding.errors import BrokenModelError, ModelLoadError, UnknownModelError, UnsupportedModelError
from superdraft.decoding.families import gguf_family, is_family, spec_of_gguf
from superdraft.decoding.loading.catalogue import ModelSize
from superdraft.decoding.loading.quiet import quiet_transformers
from superdraft.decoding.loading.reading import read_gguf
from superdraft.decoding.loading.source import Source, explained
from superdraft.decoding.loading.support import check_config, check_model_class
from superdraft.decoding.loading.torch_model import torch_model_of


def checked_config(source: Source, trust_remote_code: bool) -> transformers.PretrainedConfig | None:
    """Check the config and class before any weights are read; the config, None if it comes with its own class."""
    reading = f"cannot read the config of model {source.shown!r}"
    unreadable: type[ModelLoadError] = BrokenModelError
    if source.path is None:
        reading = (
            f"{source.name!r} is not a known model (`superdraft models list`), a folder, a .gguf file or a model on "
            "the hub"
            if source.name == source.location
            else f"{source.name!r} ({source.location}) cannot be read from the hub"
        )
        unreadable = UnknownModelError
    with explained(reading, unreadable, source.hint), quiet_transformers():
        raw, _ = transformers.PretrainedConfig.get_config_dict(source.location)
    model_type = raw.get("model_type")
    if model_type not in CONFIG_MAPPING:
        _check_foreign(source, raw, trust_remote_code)
        return None
    with explained(reading, BrokenModelError, source.hint), quiet_transformers():
        config = transformers.AutoConfig.from_pretrained(source.location)
    check_config(config, source.name)
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if model_class is None:
        raise UnsupportedModelError(f"{source.name!r} ({model_type}) is not a causal language model.")
    check_model_class(model_class, config, source.name)
    return config


def _check_foreign(source: Source, raw: dict[str, Any], trust_remote_code: bool) -> None:
    """Accept a model type that transformers does not have only if it comes with its own, trusted code."""
    model_type = raw.get("model_type")
    if "AutoModelForCausalLM" not in raw.get("auto_map", {}):
        raise UnsupportedModelError(
            f"{source.shown!r} has the unknown architecture {model_type!r}: transformers {transformers.__version__} "
            "does not support it, or config.json does not describe a language model."
        )
    if not trust_remote_code:
        raise UnsupportedModelError(
            f"{source.shown!r} ({model_type}) needs Python code that comes with it. If you trust its author, allow it "
            "with trust_remote_code."
        )


def check_model(model: transformers.PreTrainedModel, name: str) -> None:
    """Refuse a loaded model that Superposed Decoding cannot run on: one that came with its own classes, say.

    Raises:
        UnsupportedModelError: names the architecture and the reason.
    """
    check_config(model.config, name)
    check_model_class(type(model), model.config, name)


def read_hub_tokenizer(location: str, trust_remote_code: bool) -> transformers.PreTrainedTokenizerBase:
    """Read the tokenizer of a model in a folder or on the hub.

    Raises:
        Exception: whatever transformers raises.
    """
    with quiet_transformers():
        return transformers.AutoTokenizer.from_pretrained(location, trust_remote_code=trust_remote_code)


def eos_token_ids(source: Source) -> tuple[int, ...]:
    """The tokens that end a text, as the model's generation settings name them."""
    try:
        with quiet_transformers():
            ends = transformers.GenerationConfig.from_pretrained(source.location).eos_token_id
    except OSError:  # it has no such settings
        return ()
    return (ends,) if isinstance(ends, int) else tuple(ends or ())


def read_weights(source: Source, dtype: torch.dtype, trust_remote_code: bool) -> transformers.PreTrainedModel:
    """Read a model's weights into main memory, in this type; those of a GGUF file are dequantised.

    Raises:
        BrokenModelError: they cannot be read, or some are missing.
        UnsupportedModelError: a GGUF file has parameters or tensors that are unknown.
    """
    with explained(f"cannot load the weights of model {source.shown!r}", BrokenModelError, source.hint):
        if source.gguf is not None:
            file = read_gguf(source)
            family = gguf_family(file)
            if family is not None:
                return torch_model_of(spec_of_gguf(file, file.metadata[f"{family.name}.context_length"]), dtype)
            model, info = _read_other_gguf(source.gguf, dtype)
        else:
            with quiet_transformers():
                model, info = transformers.AutoModelForCausalLM.from_pretrained(
                    source.location,
                    dtype=dtype,
                    use_safetensors=True,
                    trust_remote_code=trust_remote_code,
                    output_loading_info=True,
                )
    if absent := sorted(info["missing_keys"]):  # transformers fills them with random numbers
        raise BrokenModelError(
            f"{source.shown!r} lacks {len(absent)} of its weights, for example {absent[0]}.{source.hint}"
        )
    return model


def _read_other_gguf(path: Path, dtype: torch.dtype) -> tuple[transformers.PreTrainedModel, dict[str, Any]]:
    """The model of a file of a family that transformers knows and we do not, and transformers' loading info."""
    # The GGUF reader draws a progress bar of its own that transformers' settings do not affect.
    with quiet_transformers(), contextlib.redirect_stderr(io.StringIO()):
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=dtype, output_loading_info=True
        )
    return model, info


def map_safetensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder's safetensors files by name. They are mapped: they take memory only where they are read.

    Raises:
        Exception: whatever safetensors and the system raise about a damaged file.
    """
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    return found


def size_of(config: transformers.PretrainedConfig) -> ModelSize:
    """The size of a model with this config, from its modules without any memory for weights.

    Raises:
        Exception: whatever transformers raises about a config that does not describe a causal language model.
    """
    with quiet_transformers(), torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    layers = [module for module in model.modules() if type(module) is nn.Linear and module is not head]
    num_layers, num_embedding = sum(layer.weight.numel() for layer in layers), embedding.weight.numel()
    own_head = 0 if head is None or head.weight is embedding.weight else head.weight.numel()
    return ModelSize(
        layers=num_layers,
        embedding=num_embedding,
        own_head=own_head,
        others=sum(parameter.numel() for parameter in model.parameters()) - num_layers - num_embedding - own_head,
        kv_numbers=_kv_numbers(config.get_text_config()),
        vocab_size=(embedding if head is None else head).weight.shape[0],
        is_native=is_family(config),
    )


def size_or_none(config: transformers.PretrainedConfig) -> ModelSize | None:
    """The model's size; None if it cannot be determined, which is no reason to refuse the model."""
    try:
        return size_of(config)
    except Exception:  # whatever an unusual config makes transformers raise
        return None


def _kv_numbers(config: transformers.PretrainedConfig) -> int:
    heads = int(getattr(config, "num_attention_heads", 0) or 0)
    width = getattr(config, "head_dim", None) or (int(config.hidden_size) // heads if heads else 0)
    return 2 * int(config.num_hidden_layers) * int(getattr(config, "num_key_value_heads", None) or heads) * int(width)
