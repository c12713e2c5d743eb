"""The GPU benchmark, on the CPU with tiny shapes."""

import json
import sys

import pytest
import torch

from superdraft.benchmarks.in_process import gpu
from superdraft.server.cli import main as cli

CPU = torch.device("cpu")


def test_it_runs_on_the_cpu_with_tiny_shapes(capsys):
    gpu.main(device="cpu", shapes="tiny", as_json=True)
    report = json.loads(capsys.readouterr().out)
    sizes = gpu.SIZES["tiny"]
    assert [(row["model"], row["rows"]) for row in report["steps"]] == [
        (model, rows) for model in sizes.models for rows in sizes.rows
    ]
    for row in report["steps"]:
        assert row["ms"]["median"] > 0
        assert row["of weights and cache"] >= row["of weights"] > 0
    assert [row["decoder"] for row in report["decoders"]] == [
        "greedy",
        *(f"superposed k={k}{ngram}" for k in (3, 8) for ngram in ("", ", n-gram model")),
    ]
    assert report["decoders"][0]["ratio"]["median"] == 1.0
    assert [row["requests"] for row in report["choice"]] == list(sizes.requests)
    assert all(0 < row["choice ms"]["median"] < row["step ms"]["median"] for row in report["choice"])


def test_the_weights_of_a_step_are_all_but_the_embeddings():
    model = gpu.make_model(gpu.Shape(1, 8, 16, 2, 1, 300), CPU)
    projections = 8 * 8 + 2 * 4 * 8 + 8 * 8
    assert gpu.step_weight_bytes(model) == 2 * (projections + 3 * 8 * 16 + 3 * 8 + 300 * 8)


def test_every_row_and_request_has_a_slot():
    sizes = gpu.SIZES["tiny"]
    for shape in sizes.models.values():
        engine = gpu.make_engine(gpu.make_model(shape, CPU), sizes)
        assert engine.num_slots == max(*sizes.rows, *sizes.requests)
        assert engine.max_model_len == max(sizes.contexts) + 1
        assert engine.tokenizer.vocab_size == shape.vocab_size


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "torch sees no GPU here"),
        (["--device", "cpu"], "add --shapes tiny"),
        (["--shapes", "huge"], "must be one of full, tiny"),
    ],
)
def test_what_cannot_be_run_is_refused_with_the_remedy(options, told, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["superdraft", "lab", "bench", "gpu", *options])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    assert told in " ".join(capsys.readouterr().err.split())
