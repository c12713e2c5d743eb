"""The registry of weight formats."""

import pytest
import torch
from support.models import tiny_model_folder
from typer.testing import CliRunner

from superdraft.decoding.build import build_engine
from superdraft.decoding.config import EngineConfig
from superdraft.decoding.errors import ModelLoadError
from superdraft.decoding.loading.loader import ModelOptions, load_model
from superdraft.decoding.model.linear import DenseLinear, WeightFormat
from superdraft.decoding.model.weight_formats import WEIGHT_FORMATS, choose_weight_format
from superdraft.decoding.params import GenerationParams
from superdraft.server.cli.main import app


class CountedLinear(DenseLinear):
    num_products = 0

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        CountedLinear.num_products += 1
        return super().__call__(rows)


def counted(linear: DenseLinear, *, is_head: bool = False) -> DenseLinear:
    return CountedLinear(linear.weight, linear.bias)


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_line_in_the_registry_is_all_that_a_new_format_needs(tmp_path, monkeypatch, architecture, dtype):
    monkeypatch.setitem(WEIGHT_FORMATS, "counted", WeightFormat("counted", dtype, counted))
    loaded = load_model(
        ModelOptions(model=str(tiny_model_folder(tmp_path, architecture)), device="cpu", dtype="counted")
    )
    assert loaded.model.dtype == dtype
    engine = build_engine(loaded, EngineConfig(max_model_len=64, kv_memory_bytes=4_000_000))
    CountedLinear.num_products = 0
    engine.generate("Thank you", GenerationParams(num_drafts=2, max_tokens=3))
    assert CountedLinear.num_products > 0


def test_the_help_of_serve_lists_every_format():
    result = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "300"})
    *names, last = ("auto", *WEIGHT_FORMATS)
    assert f"{', '.join(names)} or {last}." in result.output


@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "float32"])
def test_a_gpu_gets_weights_that_stay_dense(dtype):
    assert choose_weight_format(dtype, torch.device("cuda")).convert is None


def test_int4_on_a_gpu_is_refused_with_the_remedy():
    with pytest.raises(ModelLoadError, match=r"dtype int4 is for CPUs\. On a GPU use bfloat16, got device cuda:1"):
        choose_weight_format("int4", torch.device("cuda:1"))
