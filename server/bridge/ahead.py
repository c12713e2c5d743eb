"""Work ahead of the typist: what the next request is likely to need is run while nothing else is to do.

After an answer with drafts, a typist often accepts the first one. The request that would follow is run ahead of time in
a tree of its own. It ends as soon as a real request comes, at the latest after one step. If it was right, the real
request finds everything there. No request has asked for this work, so it is counted apart.
"""

import structlog

from superdraft.decoding.errors import SuperdraftError
from superdraft.decoding.request import EngineRequest
from superdraft.server.bridge.engine_protocol import DecodingEngine
from superdraft.server.observe.metrics import Metrics

log = structlog.get_logger(__name__)


class Ahead:
    """At most one request that is run ahead. For the engine's thread.

    Args:
        engine: runs it when nothing else does.
        metrics: where the work is counted.
    """

    def __init__(self, engine: DecodingEngine, metrics: Metrics) -> None:
        self._engine = engine
        self._metrics = metrics
        self._waiting: EngineRequest | None = None
        self._running: EngineRequest | None = None

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to do."""
        return self._waiting is not None or self._running is not None

    def put(self, request: EngineRequest) -> None:
        """Run this request when there is time, instead of any other."""
        self.give_up()
        self._waiting = request

    def give_up(self) -> None:
        """Do nothing more; what has been run stays in its tree."""
        if self._running is not None:
            self._engine.cancel(self._running.request_id)
        self._waiting = self._running = None

    def step(self) -> None:
        """Begin the request, or take one step."""
        if self._running is None:
            request, self._waiting = self._waiting, None
            if request is None or not self._engine.has_room_ahead:
                return
            try:
                self._engine.add_request(request)
            except SuperdraftError as refusal:  # such as a text that has become too long
                log.debug("ahead_refused", error=type(refusal).__name__)
                return
            self._running = request
            self._metrics.ahead.inc()
        outputs = self._engine.step()
        self._metrics.ahead_rows.inc(self._engine.last_step.num_rows)
        if any(output.is_terminal for output in outputs):
            self._running = None
