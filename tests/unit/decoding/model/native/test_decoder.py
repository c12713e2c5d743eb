"""The native decoder against transformers' own forward in float32 over the same rounded weights."""

import dataclasses

import pytest
import torch
import transformers
from support.native_models import COMMON, MODELS, make_model, make_runner, spec_of
from support.rounded_weights import rounded_weight
from torch import nn

from superdraft.decoding.model.native.decoder import num_weight_bytes, problem_of

MANY_HEADS = {"hidden_size": 3104, "num_attention_heads": 97, "num_key_value_heads": 1, "num_hidden_layers": 1}
LENGTH = 600  # more than two parts of 256 positions


def round_weights(model: transformers.PreTrainedModel) -> None:
    """Give the linear layers of a float32 model the weights that the kernels hold."""
    head = model.get_output_embeddings()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            weight = rounded_weight(module.weight, 8 if module is head else 4)
            module.weight = nn.Parameter(weight, requires_grad=False)


@pytest.mark.usefixtures("_variant")
@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_logits_are_those_of_the_rounded_weights(name):
    reference = make_model(name).float()
    if reference.config.tie_word_embeddings:
        reference.lm_head.weight = nn.Parameter(reference.lm_head.weight.clone(), requires_grad=False)
    round_weights(reference)
    ids = [(37 * i + i * i) % 300 for i in range(LENGTH)]
    expected = torch.log_softmax(reference(torch.tensor([ids])).logits[0], -1)
    runner = make_runner(name)

    def divergence(got: torch.Tensor, place: int) -> float:
        return float((expected[place].exp() * (expected[place] - torch.log_softmax(got, -1))).sum())

    # 8-bit activations leave a divergence of about 0.01; any error in masks, positions or caches leaves one near 1.
    logprobs = runner.exact_logprobs([ids])[0]
    found = (expected.exp() * (expected - logprobs)).sum(-1)
    assert float(found.mean()) < 0.03
    assert float(found.max()) < 0.5
    assert float(expected.max(-1).values.exp().std()) > 0.01  # the texts tell errors apart
    # Prompts of several lengths together, in any slots, in chunks, and steps that follow them.
    runner.prefill([4, 1], [ids[:300], ids[:5]], [0, 0])
    logits = runner.prefill([1, 4], [ids[5:40], ids[300:599]], [5, 300], [2, 1])
    assert divergence(logits[0], 38) < 0.5
    assert divergence(logits[1], 39) < 0.5
    assert divergence(logits[2], 598) < 0.5
    runner.prefill([0, 1, 2], [ids[:599], ids[:8], ids[:256]], [0] * 3)
    steps = runner.decode(runner.embed([ids[599], ids[8], ids[256]]), [599, 8, 256])
    for step, place in zip(steps, (599, 8, 256), strict=True):
        assert divergence(step, place) < 0.5


@pytest.mark.usefixtures("_variant")
@pytest.mark.parametrize("name", ["llama", "mistral, window"])
def test_a_row_does_not_depend_on_its_neighbours(name):
    runner = make_runner(name)
    ids = [(37 * i + i * i) % 300 for i in range(300)]
    others = [[5, 6, 7], [9] * 40, [11] * 280]
    alone = runner.prefill([0], [ids], [0])
    assert torch.equal(runner.prefill([3, 0, 1, 2], [others[0], ids, *others[1:]], [0] * 4)[1:2], alone)
    step = runner.decode(runner.embed([7]), [300])
    assert torch.equal(runner.decode(runner.embed([7, 8, 9, 10]), [300, 40, 280, 3])[:1], step)
    # How a long text is cut does not matter either, as long as no piece is very short.
    runner.prefill([5], [ids[:96]], [0])
    assert torch.equal(runner.prefill([5], [ids[96:]], [96]), alone)


def test_threads_change_nothing():
    runner = make_runner("llama")
    ids = [(37 * i + i * i) % 300 for i in range(300)]
    threads = torch.get_num_threads()
    found = []
    try:
        for num in (1, 2, 3):
            torch.set_num_threads(num)
            prompt = runner.prefill([0], [ids], [0])
            found.append((prompt, runner.decode(runner.embed([7]), [300])))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_what_lies_beyond_a_text_is_never_read():
    runner = make_runner("llama")
    ids = [(37 * i) % 300 for i in range(70)]
    clean = runner.prefill([0], [ids], [0]), runner.decode(runner.embed([7]), [70])
    for layer in runner.cache.layers:
        layer.keys.fill_(float("nan"))
        layer.values.fill_(float("nan"))
    assert torch.equal(runner.prefill([0], [ids], [0]), clean[0])
    assert torch.equal(runner.decode(runner.embed([7]), [70]), clean[1])


def test_the_bytes_of_the_weights_are_known_before_they_are_read():
    spec = spec_of(make_model("gemma3"))
    assert num_weight_bytes(spec) == make_runner("gemma3").decoder.num_weight_bytes


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({}, None),
        ({"head_dim": 16}, "a head's width is 16, which is not a multiple of 32"),
        ({"intermediate_size": 80}, "the gated layer's width is 80, which is not a multiple of 32"),
        (MANY_HEADS, "97 heads of queries cannot share 1 heads of keys"),
    ],
)
def test_models_that_the_kernels_cannot_run(changes, problem):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**COMMON | changes)
    assert problem_of(spec_of(transformers.AutoModelForCausalLM.from_config(config))) == problem


def test_layers_must_be_alike():
    """The kernels' memory is made for the first layer's width: a wider one would be written beyond its end."""
    spec, wide = spec_of(make_model("llama")), spec_of(make_model("llama", intermediate_size=192))
    first, second, *others = spec.layers
    uneven = dataclasses.replace(second, gate_up=wide.layers[1].gate_up, down=wide.layers[1].down)
    found = problem_of(dataclasses.replace(spec, layers=(first, uneven, *others)))
    assert found == "gate_up of layer 1 has the shape (384, 96), expected (320, 96)"
