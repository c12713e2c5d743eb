"""Catalogue of good open models by task: those that `superdraft models list` shows.

The sizes are facts of the models' configs. A test builds each model from its config, without weights, and compares.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from superdraft.decoding.loading.model_size import ModelSize
from superdraft.decoding.loading.store import CODE_MODEL, DEFAULT_MODEL, KNOWN_MODELS

Task = Literal["prose", "code"]


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A model that can be served by name.

    Attributes:
        name: what users call it.
        hub_id: its id on the Hugging Face hub. The models in `KNOWN_MODELS` come from elsewhere, pinned; of all others
            the hub's newest revision is fetched.
        task: what it is for.
        licence: SPDX identifier, or the licence's own name.
        size: numbers of weights.
        stored_item_bytes: bytes per weight, as the hub has them.
        is_base: a base model, which continues texts; False: a chat model.
        sees_suffix: it was trained to fill gaps, so it sees the text after the cursor.
        is_gated: the hub gives it only to accounts that have accepted its licence.
    """

    name: str
    hub_id: str
    task: Task
    licence: str
    size: ModelSize
    stored_item_bytes: int = 2
    is_base: bool = True
    sees_suffix: bool = False
    is_gated: bool = False

    @property
    def stored_bytes(self) -> int:
        """About its size on disk: the hub's weights; of a model in `KNOWN_MODELS` the GGUF file, and it in 16 bits."""
        known = KNOWN_MODELS.get(self.name)
        return self.stored_item_bytes * self.size.num_weights + (0 if known is None else known.num_bytes)


def _tied(
    layers: int, embedding: int, others: int, kv_numbers: int, vocab_size: int, *, is_fused: bool = True
) -> ModelSize:
    return ModelSize(layers, embedding, embedding, others, True, kv_numbers, vocab_size, is_fused)


_QWEN_05B = _tied(357_826_560, 136_134_656, 71_552, 6_144, 151_936)
_QWEN_15B = _tied(1_310_195_712, 233_373_696, 144_896, 14_336, 151_936)
_QWEN_3B = _tied(2_774_532_096, 311_164_928, 241_664, 18_432, 151_936)
_APACHE, _GEMMA = "Apache-2.0", "Gemma"

_LISTED = (
    ListedModel(
        DEFAULT_MODEL,
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "prose",
        _APACHE,
        _tied(106_168_320, 28_311_552, 35_136, 11_520, 49_152),
        is_base=False,
    ),
    ListedModel(
        "gemma-3-270m",
        "google/gemma-3-270m",
        "prose",
        _GEMMA,
        _tied(100_270_080, 167_772_160, 55_936, 9_216, 262_144, is_fused=False),
        is_gated=True,
    ),
    ListedModel(
        "smollm2-360m",
        "HuggingFaceTB/SmolLM2-360M",
        "prose",
        _APACHE,
        _tied(314_572_800, 47_185_920, 62_400, 20_480, 49_152),
    ),
    ListedModel("qwen2.5-0.5b", "Qwen/Qwen2.5-0.5B", "prose", _APACHE, _QWEN_05B),
    ListedModel(
        "gemma-3-1b",
        "google/gemma-3-1b-pt",
        "prose",
        _GEMMA,
        _tied(697_761_792, 301_989_888, 134_272, 13_312, 262_144, is_fused=False),
        is_gated=True,
    ),
    ListedModel("qwen2.5-1.5b", "Qwen/Qwen2.5-1.5B", "prose", _APACHE, _QWEN_15B),
    ListedModel(
        "smollm2-1.7b",
        "HuggingFaceTB/SmolLM2-1.7B",
        "prose",
        _APACHE,
        _tied(1_610_612_736, 100_663_296, 100_352, 98_304, 49_152),
    ),
    ListedModel(
        CODE_MODEL,
        "Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF",
        "code",
        _APACHE,
        replace(_QWEN_05B, is_tied=False),  # the file has the head as a matrix of its own
        is_base=False,
        sees_suffix=True,
    ),
    ListedModel(
        "deepseek-coder-1.3b",
        "deepseek-ai/deepseek-coder-1.3b-base",
        "code",
        "DeepSeek",
        ModelSize(1_214_251_008, 66_060_288, 66_060_288, 100_352, is_tied=False, kv_numbers=98_304, vocab_size=32_256),
        sees_suffix=True,
    ),
    ListedModel("qwen2.5-coder-1.5b", "Qwen/Qwen2.5-Coder-1.5B", "code", _APACHE, _QWEN_15B, sees_suffix=True),
    ListedModel(
        "codegemma-2b",
        "google/codegemma-2b",
        "code",
        _GEMMA,
        _tied(1_981_808_640, 524_288_000, 75_776, 9_216, 256_000, is_fused=False),
        sees_suffix=True,
        is_gated=True,
    ),
    ListedModel(
        "starcoder2-3b",
        "bigcode/starcoder2-3b",
        "code",
        "BigCode OpenRAIL-M",
        _tied(2_878_341_120, 150_994_944, 1_035_264, 15_360, 49_152, is_fused=False),
        stored_item_bytes=4,
        sees_suffix=True,
    ),
    ListedModel("qwen2.5-coder-3b", "Qwen/Qwen2.5-Coder-3B", "code", "Qwen Research", _QWEN_3B, sees_suffix=True),
)

CATALOGUE: Mapping[str, ListedModel] = {model.name: model for model in _LISTED}
"""The models by name, per task from small to large."""
