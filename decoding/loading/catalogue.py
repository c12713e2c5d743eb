"""Catalogue of good open models by task: those that `superdraft models list` shows, as `catalogue.toml` lists them."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Task = Literal["prose", "code"]


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model that is pinned.

    Attributes:
        source: the Python package that contains it, with pinned version; with `on_hub`, its id on the hub.
        member: the GGUF file's path in the package or hub repository.
        sha256: of the GGUF file, hex.
        num_bytes: of the GGUF file.
        on_hub: it is fetched from the hub.
    """

    source: str
    member: str
    sha256: str
    num_bytes: int
    on_hub: bool = False

    @property
    def gguf_name(self) -> str:
        """File name of the GGUF file."""
        return self.member.rpartition("/")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """How many weights a model has, by how a weight format holds them.

    Attributes:
        layers: of all linear layers but the output head.
        embedding: of the token embeddings.
        own_head: of the output head; 0: it is the token embeddings' matrix.
        others: of norms, biases and what else there is.
        kv_numbers: numbers that the keys and values of one position consist of, all layers together.
        vocab_size: rows of the output head.
        is_native: it is of a family that the kernels run; else transformers' own forward runs it.
    """

    layers: int
    embedding: int
    own_head: int = 0
    others: int
    kv_numbers: int
    vocab_size: int
    is_native: bool = True

    @property
    def head(self) -> int:
        """Weights of the output head."""
        return self.own_head or self.embedding

    @property
    def num_weights(self) -> int:
        """All weights, those of a shared matrix once."""
        return self.layers + self.embedding + self.own_head + self.others


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedModel:
    """A model that can be served by name.

    Attributes:
        name: what users call it.
        hub_id: its id on the Hugging Face hub. Of models that are not pinned, the hub's newest revision is fetched.
        task: what it is for.
        licence: SPDX identifier, or the licence's own name.
        size: numbers of weights.
        pinned: where its one file comes from; None: from the hub.
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
    pinned: KnownModel | None = None
    stored_item_bytes: int = 2
    is_base: bool = True
    sees_suffix: bool = False
    is_gated: bool = False

    @property
    def stored_bytes(self) -> int:
        """About its size on disk: the hub's weights, or the GGUF file of a pinned model."""
        return self.pinned.num_bytes if self.pinned else self.stored_item_bytes * self.size.num_weights


def _listed(name: str, *, size: dict[str, Any], pinned: dict[str, Any] | None = None, **facts: Any) -> ListedModel:
    known = None if pinned is None else KnownModel(**pinned)
    return ListedModel(name=name, size=ModelSize(**size), pinned=known, **facts)


_TABLES = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))

CATALOGUE: Mapping[str, ListedModel] = {name: _listed(name, **table) for name, table in _TABLES.items()}
"""The models by name, per task from small to large."""

KNOWN_MODELS: Mapping[str, KnownModel] = {model.name: model.pinned for model in CATALOGUE.values() if model.pinned}
"""Those that are pinned."""

DEFAULT_MODEL = "smollm2-135m"
