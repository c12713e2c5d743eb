"""The runner over llama.cpp where it differs from others: exactness of embeddings, moved drafts, refusals."""

import sys

import numpy as np
import pytest
import torch
from support.gguf_files import write_gguf

from superdraft.decoding.errors import BrokenModelError, ModelLoadError, NotEnoughMemoryError, UnsupportedModelError
from superdraft.decoding.model.kv_cache import cells_per_slot
from superdraft.decoding.model.llamacpp import library as library_module
from superdraft.decoding.model.llamacpp import runner as runner_module
from superdraft.decoding.model.llamacpp.gguf_file import GgufFile
from superdraft.decoding.model.llamacpp.library import library
from superdraft.decoding.model.llamacpp.runner import MAX_DEFAULT_SLOTS, LlamaRunner
from superdraft.decoding.model.segments import Segment

MEMORY = 10_000_000
POSITION_BYTES = 2 * 2 * 32 * 2  # two layers, keys and values, 32 numbers, float16


@pytest.fixture
def llama_cpp():
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    return library()


def make_runner(path, **options) -> LlamaRunner:
    return LlamaRunner(path, 64, MEMORY, **({"num_slots": 2, "num_threads": 1} | options))


@pytest.fixture
def tiny(tmp_path):
    return write_gguf(tmp_path / "tiny.gguf")


def test_an_embedding_gives_the_logits_of_its_token_to_the_last_bit(llama_cpp, default_gguf):
    """On the real default model, with its quantised embedding matrix."""
    runner = make_runner(default_gguf)
    ids = [1, 504, 2000, 300, 17, 345, 900, 12]
    sequence = runner.cache.borrow()
    of_tokens = runner._context.run(np.array(ids, dtype=np.int32), list(range(8)), [sequence] * 8, list(range(8)))
    runner.cache.give_back(sequence)
    of_embeddings = runner.forward([Segment.plain(0, 0, 8)], runner.embed(ids), range(8))
    assert torch.equal(of_embeddings, torch.from_numpy(of_tokens))


def test_sizes_follow_the_memory(llama_cpp, tiny):
    cells = cells_per_slot(64)
    assert make_runner(tiny, num_slots=None).num_slots == MAX_DEFAULT_SLOTS
    needed = POSITION_BYTES * (3 * cells + 64)
    runner = LlamaRunner(tiny, 64, needed, num_threads=1)
    assert (runner.num_slots, runner.num_cells, runner.cache.plan.bytes_per_position) == (3, cells, POSITION_BYTES)
    with pytest.raises(ModelLoadError, match="3 slots of max_model_len 64 need"):
        LlamaRunner(tiny, 64, needed - 1, 3, num_threads=1)
    assert LlamaRunner(tiny, 100_000, MEMORY, 1, num_threads=1).max_model_len == 512  # the model's own context


def test_what_does_not_fit_in_the_free_memory_is_refused(llama_cpp, tiny, monkeypatch):
    def free(amount: int) -> None:
        monkeypatch.setattr(runner_module, "free_bytes", lambda: amount)

    file = tiny.stat().st_size
    cells = 2 * cells_per_slot(64) + 64
    needed = file + POSITION_BYTES * cells + 2 * 4 * 256 * 301  # the logits of a batch, twice
    free(needed)
    make_runner(tiny)
    free(needed - 1)
    with pytest.raises(NotEnoughMemoryError, match=r"tiny\.gguf with a KV cache of 2 slots needs .* Lower --kv-memory"):
        make_runner(tiny)
    make_runner(tiny, checks_memory=False)
    free(file - 1)
    monkeypatch.setattr(runner_module, "LlamaModel", None)  # the file is not even mapped
    with pytest.raises(NotEnoughMemoryError, match=r"^tiny\.gguf needs"):
        make_runner(tiny)


def test_a_gpu_may_hold_what_does_not_fit(llama_cpp, tiny, monkeypatch):
    monkeypatch.setattr(runner_module, "free_bytes", lambda: 1)
    monkeypatch.setattr(llama_cpp, "llama_supports_gpu_offload", lambda: True)
    assert make_runner(tiny, gpu_layers=0).num_slots == 2


def test_sharing_copies_nothing_and_few_sequences_do(llama_cpp, tiny):
    copied = []
    for num_sequences in (None, 8):
        runner = make_runner(tiny, num_sequences=num_sequences)
        runner.forward([Segment.plain(0, 0, 3)], runner.embed([1, 2, 3]), [])
        for cell in range(10, 30):
            runner.forward([Segment(0, 3, 1, 3, (cell,))], runner.embed([cell]), [])
        runner.cache.copy(0, 1, 3)
        copied.append(runner.cache.num_copied_bytes)
    assert copied[0] == 0 < copied[1]


def test_a_failed_forward_leaves_the_rest_as_it_was(llama_cpp, tiny, monkeypatch):
    runner = make_runner(tiny)
    runner.forward([Segment.plain(0, 0, 3)], runner.embed([1, 2, 3]), [])
    row = Segment(0, 3, 1, 3, (20,))
    expected = runner.forward([row], runner.embed([7]), [0])
    with monkeypatch.context() as patch:
        patch.setattr(llama_cpp, "llama_decode", lambda *_: -3)
        with pytest.raises(RuntimeError, match=r"could not run 2 rows \(code -3\)"):
            runner.forward([row, Segment(0, 3, 1, 3, (21,))], runner.embed([7, 8]), [0])
    with pytest.raises(RuntimeError, match="cell 21 holds nothing"):
        runner.forward([Segment(0, 4, 1, 3, (21, 22))], runner.embed([7]), [0])
    assert torch.equal(runner.forward([row], runner.embed([7]), [0]), expected)


@pytest.mark.parametrize(
    ("function", "value", "reason"),
    [
        ("llama_model_has_encoder", True, "a decoder-only model is needed"),
        ("llama_model_is_recurrent", True, "attention as its only memory"),
        ("llama_model_is_hybrid", True, "attention as its only memory"),
        ("llama_model_is_diffusion", True, "diffusion model"),
        ("llama_model_n_swa", 1024, "sliding window"),
        ("llama_model_n_embd_inp", 64, "more than a token's embedding"),
        ("llama_model_rope_type", 8, "several numbers each"),
    ],
)
def test_models_that_llama_cpp_cannot_run_as_trees_are_refused_by_name(
    llama_cpp, tiny, monkeypatch, function, value, reason
):
    monkeypatch.setattr(llama_cpp, function, lambda _: value)
    with pytest.raises(UnsupportedModelError, match=rf"cannot run tiny.gguf \(llama\): .*{reason}"):
        make_runner(tiny)


def test_a_part_of_a_split_file_is_refused(llama_cpp, tmp_path, monkeypatch):
    path = write_gguf(tmp_path / "tiny.gguf")
    own = library_module.LlamaModel._metadata
    monkeypatch.setattr(
        library_module.LlamaModel, "_metadata", lambda self, key: "2" if key == "split.count" else own(self, key)
    )
    with pytest.raises(UnsupportedModelError, match="llama-gguf-split --merge"):
        make_runner(path)


def test_a_model_whose_embeddings_do_not_stand_for_tokens_is_refused(llama_cpp, tiny, monkeypatch):
    own = GgufFile.embeddings
    monkeypatch.setattr(GgufFile, "embeddings", lambda self, ids: own(self, ids) ** 2)
    with pytest.raises(UnsupportedModelError, match="embeddings do not stand for tokens"):
        make_runner(tiny)


def test_a_model_that_scales_embeddings_and_tokens_alike_is_run(llama_cpp, tmp_path):
    scales = {"embedding_scale": 12.0, "residual_scale": 0.3, "logit_scale": 8.0}
    path = write_gguf(tmp_path / "granite.gguf", architecture="granite", **scales)
    runner, plain = make_runner(path), make_runner(write_gguf(tmp_path / "plain.gguf"))
    ids = [5, 80, 7]
    logits = runner.forward([Segment.plain(0, 0, 3)], runner.embed(ids), range(3))
    (exact,) = runner.exact_logprobs([ids])
    torch.testing.assert_close(torch.log_softmax(logits, -1), exact, atol=1e-4, rtol=0)
    assert (exact - plain.exact_logprobs([ids])[0]).abs().max() > 0.1  # the scales do something


def test_embeddings_of_another_width_are_refused(llama_cpp, tiny, monkeypatch):
    monkeypatch.setattr(llama_cpp, "llama_vocab_n_tokens", lambda _: 300)
    with pytest.raises(BrokenModelError, match=r"\(301, 32\) instead of \(300, 32\)"):
        make_runner(tiny)


def test_a_file_that_is_no_model_is_refused_with_llama_cpps_reason(llama_cpp, tmp_path):
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF but not really")
    with pytest.raises(BrokenModelError, match=r"cannot load .*broken.gguf: .*\w"):
        make_runner(path)


def test_layers_on_a_gpu_need_a_llama_cpp_that_has_one(llama_cpp, tiny, monkeypatch):
    monkeypatch.setattr(llama_cpp, "llama_supports_gpu_offload", lambda: False)
    with pytest.raises(ModelLoadError, match="built without a GPU"):
        make_runner(tiny, gpu_layers=3)


def test_without_llama_cpp_the_error_says_what_to_install(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    library.cache_clear()
    try:
        with pytest.raises(ModelLoadError, match=r"needs llama-cpp-python .*pip install llama-cpp-python"):
            make_runner(tiny)
    finally:
        library.cache_clear()
