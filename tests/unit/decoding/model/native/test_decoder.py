"""The native decoder against transformers' own forward in float32 over the same rounded weights."""

import pytest
import torch
import transformers
from support.native_models import COMMON, MODELS, make_model, make_runner
from torch import nn

from superdraft.decoding.model.fused_decoder import FusedDecoder
from superdraft.decoding.model.linear import DenseLinear
from superdraft.decoding.model.linear_int4 import convert_int4
from superdraft.decoding.model.native.decoder import NativeDecoder
from superdraft.decoding.model.quantise import GROUP_SIZE, quantise_int4, quantise_int8
from superdraft.decoding.model.torch_runner import TorchRunner

MANY_HEADS = {"hidden_size": 3104, "num_attention_heads": 97, "num_key_value_heads": 1, "num_hidden_layers": 1}
LENGTH = 600  # more than two parts of 256 positions


def round_weights(model: transformers.PreTrainedModel) -> None:
    """Give the linear layers of a float32 model the weights that the kernels hold."""
    head = model.get_output_embeddings()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            weight = module.weight
            if module is head:
                levels, scales = quantise_int8(weight)
                module.weight = nn.Parameter(levels * scales[:, None], requires_grad=False)
            else:
                levels, scales, zeros = quantise_int4(weight)
                scale, minimum = (
                    (p.half().float().repeat_interleave(GROUP_SIZE, 1)) for p in (scales, zeros - 8 * scales)
                )
                module.weight = nn.Parameter(levels * scale + minimum, requires_grad=False)


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


def test_the_dense_weights_are_freed():
    model = make_model("qwen3")
    TorchRunner(model, 64, 10_000_000, num_slots=2, convert=convert_int4)
    assert sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear)) == 0
    assert model.get_input_embeddings().weight.numel() > 0


def test_models_that_the_kernels_cannot_run():
    def decoder(**options) -> FusedDecoder:
        torch.manual_seed(0)
        config = transformers.LlamaConfig(**COMMON | options)
        return FusedDecoder(transformers.AutoModelForCausalLM.from_config(config))

    dense = decoder()
    assert not NativeDecoder.supports(dense)
    for options, supported in [
        ({}, True),
        ({"hidden_act": "gelu"}, False),
        ({"head_dim": 16}, False),
        (MANY_HEADS, False),
    ]:
        made = decoder(**options)
        made.convert(convert_int4)
        assert NativeDecoder.supports(made) is supported
    uneven, wide = decoder(), decoder(intermediate_size=192)
    for made in (uneven, wide):
        made.convert(convert_int4)
    # The kernels' memory is made for the first layer's width: a wider one would be written beyond its end.
    uneven.layers[1].gate_up, uneven.layers[1].down = wide.layers[1].gate_up, wide.layers[1].down
    assert not NativeDecoder.supports(uneven)
    assert isinstance(dense.head, DenseLinear)
