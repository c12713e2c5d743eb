"""Models, tokenizers and engines for the GPU benchmark, all made here: nothing is fetched.

Weights are random, which is fine for speed: how long a step takes does not depend on what the numbers are. Two things
do depend on them and are set: the spread of the logits, since a nucleus of a flat distribution holds half the
vocabulary, and an end of text, which no timed model has, so that every draft has all its tokens.
"""

import functools
import gc
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers import decoders, pre_tokenizers, trainers

from superdraft.benchmarks.typing_texts import TEXTS
from superdraft.decoding.config import EngineConfig
from superdraft.decoding.engine import Engine
from superdraft.decoding.engine_builder import build_engine
from superdraft.decoding.kv_cache import LayerShape, probe_layer_shapes
from superdraft.decoding.model_loader import LoadedModel
from superdraft.decoding.ngram import TabularScorer

LOGIT_STD = 4.0
"""Of the logits of a timed model. The most probable token then has about 0.2, and 0.9 are reached by a few hundred."""

NUM_SCRATCH = 1
"""Positions that each slot has behind its end where whole steps run on the device."""

END_OF_TEXT = "<|endoftext|>"
_MERGED_TOKENS = 1500

Scorer = TabularScorer[Any]


@dataclass(frozen=True, slots=True)
class Shape:
    """The shape of a Llama-like model, in the words of the transformers config."""

    num_layers: int
    width: int
    mlp_width: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int
    max_positions: int = 8192


MHA_MODEL = "llama-2-7b"
GQA_MODEL = "llama-3-8b"
SHAPES = {
    MHA_MODEL: Shape(32, 4096, 11008, 32, 32, 32000),
    GQA_MODEL: Shape(32, 4096, 14336, 32, 8, 128256),
}
TINY_SHAPES = {
    MHA_MODEL: Shape(2, 64, 96, 4, 4, 600, 512),
    GQA_MODEL: Shape(2, 64, 96, 8, 2, 700, 512),
}


def make_model(
    shape: Shape,
    device: torch.device,
    dtype: torch.dtype = torch.bfloat16,
    *,
    seed: int = 0,
    weight_std: float = 0.02,
    end_of_text_id: int | None = None,
) -> transformers.PreTrainedModel:
    """A Llama of this shape with random weights, made on its device.

    Args:
        shape: its shape.
        device: where it is made.
        dtype: of its weights.
        seed: the same one gives the same weights on the same kind of device.
        weight_std: of all weights but the output head's, which give the logits their spread.
        end_of_text_id: the token that ends a text; None: nothing does.
    """
    config = transformers.LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.width,
        intermediate_size=shape.mlp_width,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        max_position_embeddings=shape.max_positions,
        initializer_range=weight_std,
        tie_word_embeddings=False,
        bos_token_id=None,
        pad_token_id=None,
        eos_token_id=end_of_text_id,
    )
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.device(device):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
        # The head reads vectors of mean square 1.
        torch.nn.init.normal_(model.lm_head.weight, std=LOGIT_STD / math.sqrt(shape.width))
    return model.requires_grad_(False).eval()


@functools.lru_cache(maxsize=4)
def make_tokenizer(vocab_size: int, has_end: bool = False) -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE that encodes any text, with made-up words up to the wanted size.

    Args:
        vocab_size: number of tokens, at least 260.
        has_end: token 0 is an end of text.
    """
    specials = [END_OF_TEXT] if has_end else []
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=min(_MERGED_TOKENS, vocab_size),
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(TEXTS, trainer)
    model = json.loads(trained.to_str())["model"]
    vocabulary: dict[str, int] = model["vocab"]
    for number in range(len(vocabulary), vocab_size):
        vocabulary[f"Ġ~{number}"] = number
    merges = [tuple(merge) for merge in model["merges"]]
    filled = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=merges))
    filled.pre_tokenizer, filled.decoder = trained.pre_tokenizer, decoders.ByteLevel()
    filled.add_special_tokens(specials)
    ends = {"eos_token": END_OF_TEXT} if has_end else {}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=filled, **ends)


def make_engine(
    model: transformers.PreTrainedModel, *, device_steps: bool = True, quantise: bool = False, **settings: Any
) -> Engine:
    """An engine over a model, with the tokenizer that fits it.

    Args:
        model: made by `make_model`.
        device_steps: whole decode steps on the model's device, as on a GPU.
        quantise: weights in 4 and 8 bits for steps of a few rows.
        settings: of `EngineConfig`.
    """
    has_end = model.config.eos_token_id is not None
    tokenizer = make_tokenizer(model.config.vocab_size, has_end)
    loaded = LoadedModel(model, tokenizer, "random weights", Path(), quantise=quantise)
    return build_engine(loaded, EngineConfig(device_steps=device_steps, **settings))


def position_bytes(shapes: list[LayerShape], item_bytes: int = 2) -> int:
    """Keys and values of one position in all layers."""
    return item_bytes * sum(shape.num_heads * (shape.key_dim + shape.value_dim) for shape in shapes)


def step_weight_bytes(model: transformers.PreTrainedModel) -> int:
    """Weights that a decode step has to read: all but the embedding table, of which it reads k rows."""
    embedding = model.get_input_embeddings().weight
    total = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    return int(total - embedding.numel() * embedding.element_size())


class Workbench:
    """Holds one timed model and one engine at a time: two models and their caches would not fit everywhere.

    Args:
        device: where everything runs.
        shapes: of the timed models, by name.
        scorer: the n-gram model; None: none.
    """

    def __init__(self, device: torch.device, shapes: dict[str, Shape], scorer: Scorer | None) -> None:
        self.device = device
        self.shapes = shapes
        self.scorer = scorer
        self._model: tuple[str, transformers.PreTrainedModel] | None = None
        self._engine: tuple[object, Engine] | None = None

    def model(self, name: str) -> transformers.PreTrainedModel:
        """The model of this name; another one is let go."""
        if self._model is None or self._model[0] != name:
            self.release()
            self._model = (name, make_model(self.shapes[name], self.device))
        return self._model[1]

    def engine(self, name: str, *, max_len: int, num_slots: int, pool: int, **settings: Any) -> Engine:
        """An engine over a model, the same one as long as it is asked for with the same settings.

        The n-gram model is placed on its device.

        Args:
            name: of the model.
            max_len: positions of a slot.
            num_slots: rows at once.
            pool: positions kept for prompts that come again.
            settings: others of `EngineConfig`.
        """
        model = self.model(name)
        key = (name, max_len, num_slots, pool, tuple(sorted(settings.items())))
        if self._engine is None or self._engine[0] != key:
            self.release_engine()
            memory = position_bytes(probe_layer_shapes(model)) * (num_slots * (max_len + NUM_SCRATCH) + pool)
            engine = make_engine(model, max_model_len=max_len, num_slots=num_slots, kv_memory_bytes=memory, **settings)
            if self.scorer is not None:
                engine.place_ngram(self.scorer)
            self._engine = (key, engine)
        return self._engine[1]

    def release_engine(self) -> None:
        """Let the engine and its KV cache go."""
        self._engine = None
        free_memory()

    def release(self) -> None:
        """Let everything go."""
        self._model = None
        self.release_engine()


def free_memory() -> None:
    """Give memory of objects that nobody holds any more back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
