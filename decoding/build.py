"""From a loaded model to an engine."""

from superdraft.decoding.config import EngineConfig
from superdraft.decoding.engine.engine import Engine
from superdraft.decoding.loading.loader import LoadedModel
from superdraft.decoding.model.runner import ModelRunner
from superdraft.decoding.text.tokenizer import Tokenizer


def build_engine(loaded: LoadedModel, config: EngineConfig) -> Engine:
    """An engine for a loaded model.

    Raises:
        UnsupportedModelError: Superposed Decoding cannot run on this model.
        ModelLoadError: the KV cache does not fit in the memory that the config gives it.
    """
    context = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
    max_model_len = min(config.max_model_len, context or config.max_model_len)
    runner = ModelRunner(
        loaded.model,
        max_model_len,
        config.kv_memory_bytes,
        config.num_slots,
        convert=loaded.convert,
    )
    generation = loaded.model.generation_config
    ends = generation.eos_token_id if generation is not None else None
    eos_token_ids = [ends] if isinstance(ends, int) else (ends or [])
    return Engine(runner, Tokenizer(loaded.tokenizer, runner.vocab_size, eos_token_ids), config)
