"""What `decoding.model.runner` says of every runner, checked for each of them on a tiny Llama in float32."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from support.gguf_export import export_gguf
from support.gguf_files import write_gguf
from support.models import tiny_model, tiny_tokenizer
from support.token_trees import RandomTrees
from transformers import PreTrainedModel

from superdraft.decoding.families import spec_of_gguf
from superdraft.decoding.gguf.file import GgufFile
from superdraft.decoding.loading.loader import ModelOptions, load_model
from superdraft.decoding.loading.torch_model import torch_model_of
from superdraft.decoding.method.superposition import superpose
from superdraft.decoding.model.native.library import has_kernels
from superdraft.decoding.model.native.runner import NativeRunner
from superdraft.decoding.model.runner import ModelRunner
from superdraft.decoding.model.segments import Segment
from superdraft.decoding.model.torch_runner import TorchRunner

MAX_LEN, NUM_SLOTS, MEMORY = 400, 3, 100_000_000
# Of log-probabilities. llama.cpp has keys and values in float16, and large random weights multiply roundings. The
# kernels round activations to 8 bits, and keys and values to bfloat16; another text makes a difference of 10.
TOLERANCES = {"torch": 2e-3, "native": 1.5, "llamacpp": 0.1, "llamacpp, few sequences": 0.1}
PROMPT = [5, 17, 100, 33, 208, 64, 9, 150]
A, B, C = 21, 87, 140  # tokens


@dataclass(frozen=True)
class Subject:
    """A runner, the same model in transformers, and the tolerance between log-probabilities."""

    runner: ModelRunner
    model: PreTrainedModel
    tolerance: float

    def run(self, segments: Sequence[Segment], *token_ids: int) -> torch.Tensor:
        """Logits after each token."""
        return self.runner.forward(segments, self.runner.embed(token_ids), range(len(token_ids)))

    def prompt(self, slot: int, token_ids: Sequence[int] = PROMPT) -> torch.Tensor:
        return self.run([Segment.plain(slot, 0, len(token_ids))], *token_ids)

    def check(self, logits: torch.Tensor, text: Sequence[int]) -> None:
        """Logits of one row against those of the plain model after a text."""
        with torch.inference_mode():
            wanted = self.model(torch.tensor([list(text)])).logits[0, -1]
        self.close(logits, wanted)

    def close(self, logits: torch.Tensor, wanted: torch.Tensor) -> None:
        got, wanted = torch.log_softmax(logits.float(), -1), torch.log_softmax(wanted.float(), -1)
        torch.testing.assert_close(got, wanted, atol=self.tolerance, rtol=0)


def native_subject(path: Path) -> Subject:
    """A model with heads that are wide enough for the kernels, in 8 bits."""
    model = tiny_model(
        "llama", hidden_size=64, intermediate_size=96, num_attention_heads=2, num_key_value_heads=1, head_dim=32
    )
    spec = spec_of_gguf(GgufFile(export_gguf(path, model, tiny_tokenizer(), quantised=True)), MAX_LEN)
    runner = NativeRunner(spec, MAX_LEN, MEMORY, NUM_SLOTS)
    return Subject(runner, torch_model_of(spec, torch.float32).eval(), TOLERANCES["native"])


@pytest.fixture(scope="module", params=TOLERANCES)
def subject(request, tmp_path_factory) -> Subject:
    if request.param == "native":
        if not has_kernels():
            pytest.skip("there are no kernels for this machine")
        return native_subject(tmp_path_factory.mktemp("model") / "tiny.gguf")
    path = write_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf", quantised=False)
    model = load_model(ModelOptions(model=str(path), device="cpu", dtype="float32")).model
    runner: ModelRunner
    if request.param == "torch":
        runner = TorchRunner(model, MAX_LEN, MEMORY, NUM_SLOTS)
    else:
        pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
        from superdraft.decoding.model.llamacpp.runner import LlamaRunner

        num_sequences = 8 if "few" in request.param else None
        runner = LlamaRunner(path, MAX_LEN, MEMORY, NUM_SLOTS, num_threads=1, num_sequences=num_sequences)
    return Subject(runner, model, TOLERANCES[request.param])


def test_sizes(subject):
    runner = subject.runner
    assert (runner.num_slots, runner.max_model_len) == (NUM_SLOTS, MAX_LEN)
    assert runner.num_cells == runner.cache.plan.num_cells > MAX_LEN
    assert runner.cache.plan.num_slots == NUM_SLOTS
    assert runner.cache.plan.bytes_per_position in (2 * 2 * 32 * 2, 2 * 2 * 32 * 4)
    assert runner.embed([]).shape == (0, runner.embed([1]).shape[1])


def test_exact_rows_give_the_models_own_greedy(subject):
    ids = torch.tensor([PROMPT])
    expected = subject.model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=20, eos_token_id=None, pad_token_id=0
    )[0, len(PROMPT) :].tolist()
    found = [int(subject.prompt(0)[-1].argmax())]
    cells = list(range(100, 120))
    for step in range(1, 20):
        row = Segment(0, len(PROMPT) + step - 1, 1, len(PROMPT), tuple(cells[:step]))
        found.append(int(subject.run([row], found[-1])[0].argmax()))
    assert found == expected
    assert len(set(found)) > 5


@pytest.mark.parametrize("seed", range(6))
def test_rows_of_trees_equal_separate_texts(subject, seed):
    rng = random.Random(seed)
    lengths = [rng.choice((1, 3, 20, 300)) for _ in range(NUM_SLOTS)]
    trees = RandomTrees(rng, [[rng.randrange(1, 300) for _ in range(length)] for length in lengths], MAX_LEN)
    for _ in range(8):
        for _ in range(rng.randint(0, 3)):
            trees.fork(max_texts=9)
        if rng.random() < 0.4:
            trees.drop()
        fed = trees.feed()
        if not fed:
            continue
        logits = subject.run([one.segment for one in fed], *(token for one in fed for token in one.token_ids))
        last = -1
        for one in fed:
            last += len(one.token_ids)
            subject.check(logits[last], one.text.token_ids)


def test_kept_rows_come_in_the_order_that_they_are_named_in(subject):
    runner, segments = subject.runner, [Segment.plain(0, 0, 3), Segment.plain(1, 0, 2)]
    logits = runner.forward(segments, runner.embed([A, B, C, B, A]), [4, 0, 2])
    for row, text in zip(logits, [(B, A), (A,), (A, B, C)], strict=True):
        subject.check(row, text)
    none = runner.forward(segments, runner.embed([A, B, C, B, A]), [])
    assert none.shape == (0, logits.shape[1])


def test_a_one_hot_weight_equals_the_token(subject):
    subject.prompt(0)
    row, runner = Segment(0, len(PROMPT), 1, len(PROMPT), (50,)), subject.runner
    token = subject.run([row], B)
    one_hot = superpose(runner.embed([A, B, C]), [[0.0, 1.0, 0.0]])
    assert torch.equal(runner.forward([row], one_hot, [0]), token)


def test_a_superposed_row_is_the_weighted_sum_of_token_embeddings(subject):
    subject.prompt(0)
    runner, table = subject.runner, subject.model.get_input_embeddings()
    torch.testing.assert_close(runner.embed([A, B, C]).float(), table(torch.tensor([A, B, C])), atol=1e-6, rtol=0)
    mixed = superpose(runner.embed([A, B, C]), [[0.5, 0.3, 0.2]])
    first = runner.forward([Segment(0, len(PROMPT), 1, len(PROMPT), (50,))], mixed, [0])
    second = subject.run([Segment(0, len(PROMPT) + 1, 1, len(PROMPT), (50, 51))], C)
    weighted = (torch.tensor([0.5, 0.3, 0.2]) @ table(torch.tensor([A, B, C]))).unsqueeze(0)
    inputs = torch.cat([table(torch.tensor(PROMPT)), weighted, table(torch.tensor([C]))])
    with torch.inference_mode():
        wanted = subject.model(inputs_embeds=inputs.unsqueeze(0)).logits[0]
    subject.close(first[0], wanted[-2])
    subject.close(second[0], wanted[-1])


def test_a_cut_text_goes_on_otherwise_and_what_lies_behind_it_remains(subject):
    """The end of the trunk is replaced, a branch of the old one is kept, and the old end comes back."""
    subject.prompt(0)
    at, base = len(PROMPT), len(PROMPT) - 2
    subject.run([Segment(0, at, 2, at, (60, 61))], A, B)
    other = subject.run([Segment.plain(0, base, 2)], C, A)
    subject.check(other[-1], [*PROMPT[:base], C, A])
    subject.run([Segment.plain(0, base, 2)], *PROMPT[base:])
    subject.check(subject.run([Segment(0, at + 2, 1, at, (60, 61, 62))], C)[0], [*PROMPT, A, B, C])


def test_a_cell_may_be_used_again_for_another_position(subject):
    subject.prompt(0)
    at = len(PROMPT)
    subject.run([Segment(0, at, 3, at, (60, 61, 62))], A, B, C)
    subject.run([Segment(0, at - 3, 2, at - 3, (61, 70))], C, C)
    logits = subject.run([Segment(0, at - 1, 1, at - 3, (61, 70, 71)), Segment(0, at + 1, 1, at, (60, 62))], B, A)
    subject.check(logits[0], [*PROMPT[:-3], C, C, B])
    subject.check(logits[1], [*PROMPT, A, A])


def test_a_copy_holds_what_the_original_held(subject):
    cache, at = subject.runner.cache, len(PROMPT)
    subject.prompt(1, [A] * 30)
    subject.prompt(0)
    cache.copy(0, 1, at - 1)
    subject.prompt(0, [C] * at)  # the copy is not touched by this
    subject.check(subject.run([Segment.plain(1, at - 1, 1)], B)[0], [*PROMPT[:-1], B])
    subject.check(subject.run([Segment.plain(0, at, 1)], B)[0], [*[C] * at, B])


def test_many_alternatives_of_one_position_are_kept(subject):
    subject.prompt(0)
    at, cells, tokens = len(PROMPT), range(100, 120), range(200, 220)
    for cell, token in zip(cells, tokens, strict=True):
        subject.check(subject.run([Segment(0, at, 1, at, (cell,))], token)[0], [*PROMPT, token])
    for cell, token in zip(cells, tokens, strict=True):
        subject.check(subject.run([Segment(0, at + 1, 1, at, (cell, cell + 50))], A)[0], [*PROMPT, token, A])


@pytest.mark.parametrize("target", [0, 2])
def test_copied_cells_keep_their_positions(subject, target):
    cache, at = subject.runner.cache, len(PROMPT)
    subject.prompt(0)
    subject.run([Segment(0, at, 3, at, (at + 1, at, 90))], A, B, C)
    if target:
        cache.copy(0, target, at)
    cache.copy_cells(0, (at + 1, at, 90), target, range(at, at + 3))  # into cells that are still to be read, too
    subject.check(subject.run([Segment.plain(target, at + 3, 1)], A)[0], [*PROMPT, A, B, C, A])


def test_values_that_are_not_numbers_reach_no_other_slot_and_are_cleared(subject):
    runner, at = subject.runner, len(PROMPT)
    subject.prompt(0)
    subject.prompt(1)
    inputs = runner.embed([A, B]).clone()
    inputs[0] = torch.nan
    logits = runner.forward([Segment(slot, at, 1, at, (50,)) for slot in (0, 1)], inputs, [0, 1])
    assert not logits[0].isfinite().any()
    subject.check(logits[1], [*PROMPT, B])
    runner.cache.clear(0)
    subject.check(subject.prompt(0, [C, B, A])[-1], [C, B, A])
    subject.check(subject.run([Segment(1, at + 1, 1, at, (50, 51))], A)[0], [*PROMPT, B, A])


def test_exact_logprobs_are_those_of_the_plain_model_and_touch_no_slot(subject):
    subject.prompt(0)
    texts = [[*PROMPT, A, B], [*PROMPT, A], [*PROMPT, A, C, C], [A], [1, 2] * 150]
    for start, chosen in ((0, texts), (8, [text for text in texts if len(text) > 8])):
        found = subject.runner.exact_logprobs(chosen, start)
        for text, rows in zip(chosen, found, strict=True):
            assert rows.dtype == torch.float32
            with torch.inference_mode():
                wanted = torch.log_softmax(subject.model(torch.tensor([text])).logits[0, start:], -1)
            torch.testing.assert_close(rows, wanted, atol=subject.tolerance, rtol=0)
    subject.check(subject.run([Segment.plain(0, len(PROMPT), 1)], B)[0], [*PROMPT, B])
