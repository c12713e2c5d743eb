"""Decode steps as a CUDA graph needs them: where rows are and how long they are is read from tensors."""

import torch

from superdraft.decoding.model_runner import ModelRunner

READ_LENGTH = 24
PROMPTS = ([5, 80, 31, 7, 7, 99, 120, 18, 44, 3, 250], [3, 4, 5], [9] * 7)


def point_at_rows(runner: ModelRunner, lengths: torch.Tensor) -> torch.Tensor:
    """Point the cache at slots [0, R); the new positions, shape [R, 1]. Python knows R and how much is read."""
    window, positions = runner.cache._window, lengths.unsqueeze(1)
    window.slots = slice(0, len(lengths))
    window.write_slots = torch.arange(len(lengths), device=lengths.device).unsqueeze(1)
    window.positions, window.length, window.read_length = positions, READ_LENGTH - 1, READ_LENGTH
    return positions


def step_of(runner: ModelRunner, embeddings: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Logits of one step, shape [R, V]."""
    positions = point_at_rows(runner, lengths)
    return runner._forward(positions, None, inputs_embeds=embeddings.unsqueeze(1))[:, 0]


def fill(runner: ModelRunner, prompts: tuple[list[int], ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts into the slots; their last tokens' embeddings and the lengths before them."""
    for slot, prompt in enumerate(prompts):
        runner.prefill([slot], [prompt[:-1]], [0])
    return runner.embed([prompt[-1] for prompt in prompts]), torch.tensor([len(prompt) - 1 for prompt in prompts])
