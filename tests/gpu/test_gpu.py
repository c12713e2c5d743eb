"""What only a GPU can show. Everything else about it is tested on the CPU."""

import pytest
import torch

from superdraft.benchmarks.gpu_checks import check
from superdraft.ngram_models.manifest import Manifest
from superdraft.ngram_models.registry import find_ngram_model, open_scorer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def test_drafts_on_the_gpu_are_those_of_the_cpu():
    folder = find_ngram_model("smollm2-135m")
    found = check(torch.device("cuda"), open_scorer(folder, Manifest.read(folder)), num_prompts=12)
    assert [row for row in found.rows if not row["holds"]] == []
