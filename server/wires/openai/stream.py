"""Chunks of a streamed completion: the new text of each choice, and finally its end.

A delta is text that can no longer change. While drafts grow, that is a beginning of the prompt's first choice: what all
drafts have in common, or, of long texts, the draft that is certain to be the first. Every other choice is sent whole
when its prompt's drafts are finished. So the joined deltas of an index are the text that the same request gets
without `stream`.
"""

from collections.abc import Mapping, Sequence

from superdraft.decoding.outputs import GenerationOutput, Snapshot, StepOutput
from superdraft.server.wires.openai.mapping import add_warnings, choices_of, usage_of
from superdraft.server.wires.openai.schemas import (
    Choice,
    ChunkChoice,
    CompletionChunk,
    CompletionChunkWithUsage,
    CompletionRequest,
    CompletionUsage,
)


class CompletionStream:
    """Renders the outputs of one streamed request. It keeps track of the text sent of each prompt's first choice.

    Args:
        head: `id`, `created` and `model` of every chunk.
        body: the request.
        request_ids: the engine's request id of each prompt.
        echoes: the text before the drafts of each prompt; empty without `echo`.
        warnings: about the request.
    """

    def __init__(
        self,
        head: Mapping[str, str | int],
        body: CompletionRequest,
        request_ids: Sequence[str],
        echoes: Sequence[str],
        warnings: Sequence[str],
    ) -> None:
        self._head = head
        self._body = body
        self._request_ids = tuple(request_ids)
        self._echoes = echoes
        self._sent = [""] * len(echoes)
        self._warnings = list(warnings)
        self._outputs: list[GenerationOutput] = []

    def __call__(self, step: StepOutput) -> list[CompletionChunk]:
        """The chunks for an output that is not an error; none if no new text has become final."""
        prompt_index = self._request_ids.index(step.request_id)
        if step.snapshot is not None:
            return self._grow(prompt_index, step.snapshot)
        assert step.output is not None
        return self._finish(prompt_index, step.output)

    def _grow(self, prompt_index: int, snapshot: Snapshot) -> list[CompletionChunk]:
        settled = self._echoes[prompt_index] + snapshot.stable_text
        delta = self._unsent(prompt_index, settled)
        if not delta:
            return []
        self._sent[prompt_index] = settled
        return [self._chunk(ChunkChoice(index=prompt_index * self._body.n, text=delta))]

    def _finish(self, prompt_index: int, output: GenerationOutput) -> list[CompletionChunk]:
        self._outputs.append(output)
        add_warnings(self._warnings, output)
        first, *others = choices_of(self._body, prompt_index, self._echoes[prompt_index], output)
        chunks = [self._chunk(_ending(first, self._unsent(prompt_index, first.text)))]
        chunks += [self._chunk(_ending(choice, choice.text)) for choice in others]
        if len(self._outputs) == len(self._echoes):
            chunks[-1] = chunks[-1].model_copy(update={"warnings": self._warnings})
            if self._body.include_usage:
                chunks.append(self._chunk(usage=usage_of(self._outputs, self._body.n)))
        return chunks

    def _unsent(self, prompt_index: int, text: str) -> str:
        sent = self._sent[prompt_index]
        assert text.startswith(sent), "text that was sent has changed"
        return text[len(sent) :]

    def _chunk(self, *choices: ChunkChoice, usage: CompletionUsage | None = None) -> CompletionChunk:
        fields = {**self._head, "choices": list(choices)}
        if self._body.include_usage:
            return CompletionChunkWithUsage.model_validate({**fields, "usage": usage})
        return CompletionChunk.model_validate(fields)


def _ending(choice: Choice, delta: str) -> ChunkChoice:
    return ChunkChoice.model_validate({**choice.model_dump(), "text": delta})
