"""Running servers, asked over HTTP with one request after another, as by a single user."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from superdraft.client import Superdraft
from superdraft.client.errors import ClientError
from superdraft.client.wire import DraftsOptions
from superdraft.evaluation.decoders.decoders import Ask, Contender, Decoded, decoded_of
from superdraft.server.errors import CommandError

SUPERDRAFT, LLAMA_CPP = "superdraft", "llamacpp"
TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Peer:
    """A running server to compare with.

    Attributes:
        kind: "superdraft" or "llamacpp".
        url: URL of the server.
    """

    kind: str
    url: str

    @property
    def name(self) -> str:
        """Name in reports."""
        return f"{self.kind} at {self.url}"


def parse_peer(text: str, kinds: Sequence[str]) -> Peer:
    """A peer from `KIND=URL`.

    Raises:
        CommandError: the kind is not one of `kinds`, or there is no URL.
    """
    kind, _, url = text.partition("=")
    if kind not in kinds or not url.startswith(("http://", "https://")):
        raise CommandError(
            f"--peer must be KIND=URL with KIND one of {', '.join(kinds)}, such as "
            f"{kinds[0]}=http://127.0.0.1:8000, got {text!r}."
        )
    return Peer(kind, url.rstrip("/"))


class ServedDecoder:
    """A Superdraft server that is sent default requests to `/v1/drafts`: prompt, k and number of tokens.

    Args:
        client: client of the server.
        num_drafts: k.
        max_tokens: new tokens per draft.
        options: further fields of each request.
    """

    def __init__(self, client: Superdraft, num_drafts: int, max_tokens: int, options: DraftsOptions) -> None:
        self._client = client
        self._num_drafts = num_drafts
        self._max_tokens = max_tokens
        self._options = options

    def decode(self, asks: Sequence[Ask]) -> list[Decoded]:
        """The drafts of each prompt, in order.

        Raises:
            CommandError: the server does not answer, or refuses a prompt.
        """
        return [self._decode(ask) for ask in asks]

    def _decode(self, ask: Ask) -> Decoded:
        fields: DraftsOptions = {**self._options, "suffix": ask.suffix} if ask.suffix else self._options
        started_s = time.perf_counter()
        try:
            answer = self._client.complete(ask.prompt, self._num_drafts, self._max_tokens, **fields)
        except ClientError as error:
            raise CommandError(f"{self._client.base_url} did not answer with drafts: {error}") from None
        return decoded_of(answer, time.perf_counter() - started_s)


@contextmanager
def served_contender(
    peer: Peer, api_key: str | None, num_drafts: int, max_tokens: int, options: DraftsOptions | None = None
) -> Iterator[Contender]:
    """A running Superdraft server as a decoder of a comparison. `options`: further fields of each request.

    Raises:
        CommandError: the server does not answer.
    """
    with Superdraft(peer.url, api_key, TIMEOUT_S) as client:
        try:
            model = client.models()[0].id
        except ClientError as error:
            raise CommandError(f"--peer {peer.kind}={peer.url}: {error}") from None
        asked = {"num_drafts": num_drafts, "max_tokens": max_tokens}
        settings = {"peer": peer.kind, "url": peer.url, "model": model, **asked, **(options or {})}
        decoder = ServedDecoder(client, num_drafts, max_tokens, options or {})
        yield Contender(peer.name, decoder, settings, max_tokens - 1)
