"""What only a GPU can show. Everything else about it is tested on the CPU."""

import pytest
import torch
from support.ngram import shipped_scorer

from superdraft.benchmarks.gpu_checks import check

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def test_drafts_on_the_gpu_are_those_of_the_cpu():
    found = check(torch.device("cuda"), shipped_scorer(), num_prompts=12)
    assert [row for row in found.rows if not row["holds"]] == []
