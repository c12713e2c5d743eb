"""The GPU benchmark, on the CPU with tiny shapes: what it checks and what it times."""

import time
from dataclasses import astuple, replace
from types import SimpleNamespace

import pytest
import torch
from support.ngram import shipped_scorer

from superdraft.benchmarks import (
    gpu_attention,
    gpu_checks,
    gpu_load,
    gpu_models,
    gpu_parts,
    gpu_peers,
    gpu_profile,
    gpu_steps,
    gpu_timing,
)
from superdraft.decoding.kv_cache import LayerShape
from superdraft.decoding.params import GenerationParams

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread():
    with gpu_timing.one_thread():
        yield


@pytest.fixture
def bench():
    return gpu_models.Workbench(CPU, gpu_models.TINY_SHAPES, shipped_scorer())


# Models


def test_a_made_up_tokenizer_has_the_size_and_encodes_any_text():
    tokenizer = gpu_models.make_tokenizer(2000)
    assert len(tokenizer) == 2000
    assert sorted(tokenizer.get_vocab().values()) == list(range(2000))
    text = "Please report — naïvely — what you find.\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("Please report")) < 6  # real words are few tokens
    assert tokenizer.eos_token_id is None
    assert gpu_models.make_tokenizer(2000, has_end=True).eos_token_id == 0


def test_logits_are_as_wide_as_a_language_models(bench):
    model = bench.model(gpu_models.GQA_MODEL)
    logits = model(torch.randint(0, 700, (4, 20))).logits.float()
    assert float(logits.std()) == pytest.approx(gpu_models.LOGIT_STD, rel=0.1)
    again = gpu_models.make_model(gpu_models.TINY_SHAPES[gpu_models.GQA_MODEL], CPU)
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)


def test_the_weights_of_a_step_are_all_but_the_embeddings():
    shape = gpu_models.Shape(1, 8, 16, 2, 1, 300)
    model = gpu_models.make_model(shape, CPU)
    projections = 8 * 8 + 2 * 4 * 8 + 8 * 8
    assert gpu_models.step_weight_bytes(model) == 2 * (projections + 3 * 8 * 16 + 3 * 8 + 300 * 8)


def test_the_bench_keeps_one_model_and_one_engine(bench):
    first = bench.engine(gpu_models.MHA_MODEL, max_len=32, num_slots=2, pool=10)
    assert bench.engine(gpu_models.MHA_MODEL, max_len=32, num_slots=2, pool=10) is first
    assert first._runner.cache.plan.num_prefix_positions == 10
    assert bench.engine(gpu_models.MHA_MODEL, max_len=32, num_slots=3, pool=10) is not first
    model = bench.model(gpu_models.MHA_MODEL)
    bench.model(gpu_models.GQA_MODEL)
    assert bench.model(gpu_models.MHA_MODEL) is not model


def test_the_ngram_model_is_placed(bench):
    assert bench.engine(gpu_models.MHA_MODEL, max_len=32, num_slots=2, pool=10)._device.holds(bench.scorer)


# The check


def test_the_cpu_passes_its_own_check():
    found = gpu_checks.check(CPU, shipped_scorer(), num_prompts=3)
    assert found.passed
    assert {row["case"] for row in found.rows} == set(gpu_checks.CASES)
    assert {row["dtype"] for row in found.rows} == {"float32", "bfloat16"}
    assert {row["way"] for row in found.rows} >= {"alone", "16 together", "with cancelled ones"}


def spoilt_engine(spoil, dtype):
    """`gpu_checks._engine`, with a fault in the decode steps of what is checked."""
    make = gpu_checks._engine

    def engine(model, device_steps):
        made = make(model, device_steps)
        if device_steps and model.dtype == dtype:
            runner, decode = made._runner, made._runner.decode_at
            runner.decode_at = lambda *args: spoil(decode(*args))
        return made

    return engine


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_device_fails_the_check(monkeypatch, dtype):
    monkeypatch.setattr(gpu_checks, "_engine", spoilt_engine(lambda logits: logits.roll(1, -1), dtype))
    found = gpu_checks.check(CPU, None, num_prompts=2)
    assert not found.passed
    assert {row["dtype"] for row in found.rows if not row["holds"]} == {str(dtype).removeprefix("torch.")}


def test_scores_that_are_off_fail_the_check(monkeypatch):
    monkeypatch.setattr(gpu_checks, "CASES", {"greedy": gpu_checks.CASES["greedy"]})
    monkeypatch.setattr(gpu_checks, "_engine", spoilt_engine(lambda logits: 0.9 * logits, torch.float32))
    rows = gpu_checks.check(CPU, None, num_prompts=3).rows
    wrong = [row for row in rows if row["dtype"] == "float32"]
    assert all(row["equal"] == row["compared"] > 0 for row in wrong)
    assert not any(row["holds"] for row in wrong if row["way"] == "16 together")


def test_a_check_that_leaves_most_prompts_out_fails(monkeypatch):
    monkeypatch.setattr(gpu_checks, "CASES", {"superposed k=8": gpu_checks.CASES["superposed k=8"]})
    monkeypatch.setitem(gpu_checks.CASES, "greedy", GenerationParams(strategy="greedy", num_drafts=1, max_tokens=4))
    monkeypatch.setattr(gpu_checks, "PERTURBATION", 0.05)
    rows = gpu_checks.check(CPU, None, num_prompts=4).rows
    left_out = [row for row in rows if row["left out"] > 2]
    assert left_out
    assert not any(row["holds"] for row in left_out)


# The parts


def test_steps_are_timed_and_compared(bench):
    roofline = gpu_timing.measure_roofline(CPU, 1 << 16, 16, 2)
    assert roofline.copy_bytes_per_s > 0 < roofline.matmul_flop_per_s
    found = gpu_steps.time_single_row(bench, replace(roofline, copy_bytes_per_s=1e9), 40, 2)
    step = found.rows[0]
    weights_ms = 1000 * gpu_models.step_weight_bytes(bench.model(gpu_models.MHA_MODEL)) / 1e9
    assert step["of weights"] == pytest.approx(weights_ms / step["ms"]["median"], abs=0.01)
    assert step["of weights and cache"] >= step["of weights"] > 0
    decoders = [row["decoder"] for row in gpu_steps.compare_steps(bench, 40, 2).rows]
    assert decoders[0] == "greedy"
    assert set(decoders[1:]) == {
        f"superposed k={k}, {ngram}"
        for k in (3, 8)
        for ngram in ("no n-gram", "n-gram on the device", "n-gram on the host")
    }


def test_key_presses_find_their_prefix(bench):
    rows = gpu_steps.time_key_presses(bench, 48, 4).rows
    plain = next(row for row in rows if row["drafts"] == "superposed")
    assert plain["keys"] == 4
    assert plain["decode steps"] == gpu_steps.KEY_PRESS_TOKENS - 1
    assert all(row["prompt tokens run"] < 12 for row in rows)
    assert all(0 < row["p50 ms"] <= row["p95 ms"] for row in rows)


def test_every_client_is_answered_again_and_again(bench):
    load = replace(gpu_parts.TINY.load, in_flight=3, turns=2)
    rows = {row["strategy"]: row for row in gpu_load.time_load(bench, load).rows}
    steps = gpu_load.MAX_TOKENS - 1
    assert rows["superposed"]["rows a request"] == steps
    assert rows["sample"]["rows a request"] == rows["distinct"]["rows a request"] == 3 * steps
    assert {row["prompt tokens run"] for row in rows.values()} == {1.0}
    assert rows["sample"]["sample's part"]["median"] == 1.0


def test_what_fits_is_planned_and_tried(bench):
    found = gpu_load.find_capacity(bench, gpu_parts.TINY.load)
    rows = {row["strategy"]: row for row in found.rows}
    assert found.passed
    assert rows["superposed"]["in flight"] // 3 == rows["sample"]["in flight"] > 1
    assert all(row["at once"] == row["tried"] for row in found.rows)


def test_most_slots_is_the_last_number_that_the_plan_accepts():
    shapes = [LayerShape(2, 8, 8)] * 3  # 192 bytes a position, of which each slot has one more
    assert gpu_load.most_slots(shapes, 11 * 192 * 7, 10) == 7
    assert gpu_load.most_slots(shapes, 11 * 192 * 7 - 1, 10) == 6
    assert gpu_load.most_slots(shapes, 100, 10) == 0


def test_transformers_makes_as_many_drafts(bench, monkeypatch):
    asked = []
    make = gpu_peers._generate
    monkeypatch.setattr(gpu_peers, "_generate", lambda *args: asked.append(args[1:]) or make(*args))
    ours, theirs = gpu_peers.time_generate(bench, gpu_parts.TINY.load).rows
    assert (ours["times ours"], theirs["contender"]) == (1.0, "generate")
    assert theirs["requests/s"] > 0
    assert len(asked) == gpu_peers.ROUNDS + 1
    assert {(len(prompts), len(prompts[0]), chunk) for prompts, chunk in asked} == {(2, 48, 2)}
    assert len({tuple(prompts[0]) for prompts, _ in asked}) == len(asked)


def test_transformers_gets_fewer_prompts_at_a_time_where_memory_is_short(monkeypatch):
    tried = []

    def generate(model, prompts, chunk):
        tried.append(chunk)
        if chunk > 2:
            raise torch.OutOfMemoryError

    monkeypatch.setattr(gpu_peers, "_generate", generate)
    assert gpu_peers._largest_chunk(None, [[1]] * 8) == 2
    assert tried == [8, 4, 2]


class Manager:
    """transformers' continuous batching as far as it is used."""

    def __init__(self, num_tokens, error=None):
        self.waiting, self.rounds = [], 0
        self.num_tokens, self.error = num_tokens, error

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False

    def add_requests(self, *, inputs, max_new_tokens):
        self.rounds += 1
        assert max_new_tokens == gpu_load.MAX_TOKENS
        self.waiting += [[0] * self.num_tokens] * (gpu_load.NUM_DRAFTS * len(inputs))

    def get_result(self, timeout):
        if self.waiting:
            return SimpleNamespace(generated_tokens=self.waiting.pop(), error=self.error)
        return None

    def is_running(self):
        return False


def batch_with(bench, monkeypatch, manager):
    model = bench.model(gpu_models.GQA_MODEL)
    monkeypatch.setattr(
        type(model), "continuous_batching_context_manager", lambda self, *, generation_config: manager, raising=False
    )
    return gpu_peers.time_batching(bench, gpu_parts.TINY.load)


def test_continuous_batching_is_timed_round_by_round(bench, monkeypatch):
    manager = Manager(gpu_load.MAX_TOKENS)
    _, theirs = batch_with(bench, monkeypatch, manager).rows
    assert theirs["contender"] == "continuous batching"
    assert manager.rounds == gpu_peers.ROUNDS + 1


@pytest.mark.parametrize(
    ("manager", "told"),
    [
        (Manager(gpu_load.MAX_TOKENS - 1), "Only 0 of 6 drafts have all their tokens"),
        (Manager(gpu_load.MAX_TOKENS, error="out of blocks"), "out of blocks"),
    ],
)
def test_continuous_batching_that_breaks_says_how(bench, monkeypatch, manager, told):
    with pytest.raises(RuntimeError, match=told):
        batch_with(bench, monkeypatch, manager)


def test_what_hangs_is_left_behind():
    with pytest.raises(gpu_peers.HungError, match="0 s"):
        gpu_peers._within(0.01, lambda: time.sleep(0.5))
    with pytest.raises(ZeroDivisionError):
        gpu_peers._within(5, lambda: 1 / 0)


def test_every_way_to_compute_attention_is_listed(monkeypatch):
    trials = (
        SimpleNamespace(name="sdpa", time_ms=0.5, reason=None),
        SimpleNamespace(name="flash", time_ms=None, reason="failed: no GPU"),
    )
    asked = []

    def choose_attention(size, dtype, device, **options):
        asked.append((size, options["candidates"]))
        return SimpleNamespace(name="sdpa", trials=trials)

    ways = {
        "sdpa": SimpleNamespace(is_simple=True, attention=None),
        "x": SimpleNamespace(is_simple=False, attention=None),
    }
    monkeypatch.setattr(gpu_attention, "CANDIDATES", ways)
    monkeypatch.setattr(gpu_attention, "choose_attention", choose_attention)
    rows = gpu_attention.compare_attention(CPU, gpu_models.TINY_SHAPES, (1, 4), (16,)).rows
    assert [astuple(size) for size, _ in asked] == [
        (1, 4, 1, 16, 16),
        (4, 4, 1, 16, 16),
        (1, 2, 4, 8, 16),
        (4, 2, 4, 8, 16),
    ]
    assert all(set(candidates) == {"sdpa"} for _, candidates in asked)
    assert len(rows) == 8
    # Keys and values of 16 positions of 4 heads of 16 numbers of 2 bytes: 4,096 bytes in half a millisecond.
    assert (rows[0]["us"], rows[0]["GB/s"], rows[0]["is best"]) == (500.0, 0.0, True)
    assert (rows[1]["us"], rows[1]["left out"]) == (None, "failed: no GPU")


def test_gaps_are_what_no_kernel_covers():
    assert gpu_profile.gaps([(0, 2), (1, 3), (5, 6), (6, 9), (10, 11)]) == (3.0, 2)
    kernels = [("mm", (0.0, 6.0)), ("add", (6.0, 8.0)), ("mm", (10.0, 12.0))]
    found = gpu_profile.summarise(kernels, 2)
    assert found.rows[0] == {"kernel": "mm", "us a step": 4.0, "share": 0.8, "calls a step": 1.0}
    assert "6.0 us from first to last kernel, 1.5 kernels, 1.0 us in 0.5 gaps" in found.notes[0]
    with pytest.raises(RuntimeError, match="saw nothing"):
        gpu_profile.summarise([], 2)
