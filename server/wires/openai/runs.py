"""The engine's runs behind one completion: one for each prompt, or a share of the run of twin requests."""

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog

from superdraft.decoding.errors import SequenceFailedError, SuperdraftError
from superdraft.decoding.ngram import NgramScorer
from superdraft.decoding.outputs import GenerationOutput, StepOutput
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.prompt import Prompt
from superdraft.decoding.request import EngineRequest
from superdraft.decoding.text.fim import Gap
from superdraft.decoding.text.gap_cut import cut_for_gap, line_end_of
from superdraft.server.bridge.fan_out import Run
from superdraft.server.bridge.output_stream import MergedOutputs, OutputStream, open_all
from superdraft.server.service import Service, all_or_none
from superdraft.server.wires.editors import with_cut_drafts

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class CompletionRuns:
    """What is to be run, and with whom.

    Attributes:
        service: the served model.
        completion_id: the answer's id.
        prompts: by the engine's request id.
        params: of every run.
        twin_key: what twins of this request have in common; None: it has none. Only for a single prompt.
        gaps: what each request id's drafts are to fill, where there is a text after them.
    """

    service: Service
    completion_id: str
    prompts: Mapping[str, Prompt]
    params: GenerationParams
    twin_key: str | None = None
    gaps: Mapping[str, Gap] = field(default_factory=dict)

    def shown(self, name: str, output: GenerationOutput) -> GenerationOutput:
        """What is shown of a run's drafts: in a gap they end where the text after it begins.

        Line ends become those of the gap's text, unless log-probabilities say where each token stands in the draft.
        """
        gap = self.gaps.get(name)
        if gap is None or not output.drafts:
            return output
        line_end = line_end_of(gap) if self.params.verify_top is None else None
        return with_cut_drafts(output, lambda text: cut_for_gap(text, gap), line_end)

    async def outputs(self) -> list[GenerationOutput]:
        """The answer to each prompt.

        Raises:
            SuperdraftError: the engine's.
        """
        scorer = await self.service.ngram_models.current_default()
        if self.twin_key is None:
            outputs = await all_or_none([self.service.engine.generate(one) for one in self._requests(scorer)])
            return [self.shown(name, output) for name, output in zip(self.prompts, outputs, strict=True)]
        ((name, prompt),) = self.prompts.items()

        async def run(params: GenerationParams) -> GenerationOutput:
            return self.shown(name, await self.service.engine.generate(EngineRequest(name, prompt, params, scorer)))

        share = await self.service.fan_out.draft(self.twin_key, self.params, run)
        self.service.fan_out.remember(self.completion_id, share.rank)
        return [share.output]

    async def stream(self) -> MergedOutputs:
        """The outputs of all prompts as they come; returns when the engine has taken them.

        Raises:
            SuperdraftError: the engine's, if it takes one of them not.
        """
        if self.twin_key is not None:
            return await open_all([self._shared_stream()])
        scorer = await self.service.ngram_models.current_default()
        return await open_all([self.service.engine.stream(one) for one in self._requests(scorer)])

    def _requests(self, scorer: NgramScorer[Any] | None) -> list[EngineRequest]:
        return [EngineRequest(name, prompt, self.params, scorer) for name, prompt in self.prompts.items()]

    async def _shared_stream(self) -> OutputStream:
        """The request that starts a shared run sees its snapshots, a twin its own draft alone, at the end.

        What all drafts of the run agree on begins every twin's draft, so the snapshots' stable text holds for it too.
        """
        ((name, prompt),) = self.prompts.items()

        def cancel(_: OutputStream) -> None:
            feeding.cancel()

        outputs = OutputStream(asyncio.get_running_loop(), cancel)

        async def run(params: GenerationParams) -> GenerationOutput:
            scorer = await self.service.ngram_models.current_default()
            steps = await self.service.engine.stream(EngineRequest(name, prompt, params, scorer))
            outputs.accept()
            with contextlib.closing(steps):
                async for step in steps:
                    if step.error is not None:
                        raise step.error
                    if step.output is not None:
                        return self.shown(name, step.output)
                    outputs.send(step)
            raise AssertionError("a stream ended without a terminal output")

        feeding = asyncio.create_task(self._feed(outputs, name, run))
        try:
            await outputs.accepted()
        except asyncio.CancelledError:
            outputs.close()
            raise
        return outputs

    async def _feed(self, outputs: OutputStream, name: str, run: Run) -> None:
        """End the outputs with a share of the run, or with why there is none."""
        assert self.twin_key is not None
        try:
            share = await self.service.fan_out.draft(self.twin_key, self.params, run)
        except Exception as error:
            if not isinstance(error, SuperdraftError):
                log.exception("unexpected_error")
                error = SequenceFailedError("The server failed on this request; its log says why.")
            outputs.refuse(error)  # of no effect if the engine had taken the request
            outputs.send(StepOutput(name, error=error))
        else:
            self.service.fan_out.remember(self.completion_id, share.rank)
            outputs.accept()
            outputs.send(StepOutput(name, output=share.output))
