"""Decode steps as a CUDA graph needs them: where rows are and how long they are is read from tensors."""

import torch

from superdraft.decoding.model_runner import ModelRunner

READ_LENGTH = 24
PROMPTS = ([5, 80, 31, 7, 7, 99, 120, 18, 44, 3, 250], [3, 4, 5], [9] * 7)


def step_of(runner: ModelRunner, embeddings: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Logits of one step of slots [0, R), shape [R, V]."""
    return runner.decode_at(embeddings, lengths, READ_LENGTH)


def fill(runner: ModelRunner, prompts: tuple[list[int], ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts into the slots; their last tokens' embeddings and the lengths before them."""
    for slot, prompt in enumerate(prompts):
        runner.prefill([slot], [prompt[:-1]], [0])
    return runner.embed([prompt[-1] for prompt in prompts]), torch.tensor([len(prompt) - 1 for prompt in prompts])
