"""Both clients against a real server on a real socket."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from support.clients import FACES
from support.serving import num_commands
from support.waiting import PATIENCE_S, eventually, until

from superdraft.client import AsyncSuperdraft, Superdraft
from superdraft.client.errors import BadRequestError, NotFoundError, RequestTimeoutError, ServerError, SupersededError
from superdraft.decoding.errors import SequenceFailedError


@pytest.fixture(params=FACES)
def face(request, url):
    return FACES[request.param](url)


@pytest.fixture
def endless(engine):
    engine.on_step = engine.never_end
    return engine


def test_complete(face):
    completion = face.call("complete", "hi", num_drafts=2, max_tokens=2)
    assert [draft.text for draft in completion.drafts] == [" red0 red1", " green0 green1"]
    assert completion.drafts[0].tokens == (" red0", " red1")
    assert [draft.score for draft in completion.drafts] == [-0.5, -1.5]
    assert completion.model == "tiny"


@pytest.mark.usefixtures("kept_up_with")
def test_stream_grows_into_the_answer(face):
    snapshots, completion = face.stream(num_drafts=2, max_tokens=5)
    assert snapshots
    assert all(completion.drafts[0].text.startswith(snapshot.drafts[0].text) for snapshot in snapshots)
    assert {snapshot.id for snapshot in snapshots} == {completion.id}
    assert completion.drafts[1].text == " green0 green1 green2 green3 green4"


def test_refusals_name_the_field(face):
    with pytest.raises(BadRequestError) as caught:
        face.call("complete", "hi", num_drafts=0)
    assert (caught.value.param, caught.value.kind) == ("num_drafts", "invalid_request_error")
    assert caught.value.request_id
    with pytest.raises(NotFoundError):
        face.stream(model="other")


def test_error_in_mid_stream(face, engine):
    def fail_after_two_steps():
        for job in engine.jobs.values():
            if job.num_steps == 2:
                engine.fail[job.request_id] = SequenceFailedError("No numbers.")

    engine.on_step = fail_after_two_steps
    with pytest.raises(ServerError, match="No numbers") as caught:
        face.stream(max_tokens=9)
    assert caught.value.code == "sequence_failed"


def test_leaving_a_stream_ends_its_request(face, endless):
    face.stream(most=1, max_tokens=50)
    assert eventually(lambda: endless.cancelled == [endless.seen[0].request_id])
    assert endless.jobs == {}


def test_timeout_ends_the_request(face, endless):
    num_calls, timeout_s = 0, 0.25
    while not endless.seen:  # a shorter time may be over before the engine has the request
        num_calls, timeout_s = num_calls + 1, 2 * timeout_s
        with pytest.raises(RequestTimeoutError):
            face.call("complete", "hi", max_tokens=50, timeout=timeout_s)
    assert eventually(lambda: endless.cancelled == [job.request_id for job in endless.seen])
    assert len(endless.seen) <= num_calls


def test_cancelled_task_ends_its_request(url, endless):
    async def run():
        async with AsyncSuperdraft(url) as client:
            task = asyncio.create_task(client.complete("hi", max_tokens=50))
            await until(lambda: endless.seen)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda: endless.cancelled)
            endless.on_step = lambda: None
            return await client.complete("hi", max_tokens=1)  # the client goes on

    assert asyncio.run(run()).drafts
    assert endless.cancelled == [endless.seen[0].request_id]


def test_newer_request_of_a_session_takes_the_olders_place(app, url, engine, stepwise):
    outcome = []

    def ask_older():
        with Superdraft(url) as client, pytest.raises(SupersededError) as caught:
            client.complete("hi", max_tokens=50, session_id="window-1")
        outcome.append(caught.value)

    older = threading.Thread(target=ask_older)
    older.start()
    assert eventually(lambda: len(engine.seen) == 1)
    with Superdraft(url) as client, ThreadPoolExecutor() as pool:
        newer = pool.submit(client.complete, "hi there", max_tokens=2, session_id="window-1")
        assert eventually(lambda: num_commands(app) == 1)
        stepwise.release(100)
        assert newer.result().drafts
    older.join(PATIENCE_S)
    assert (outcome[0].status, outcome[0].should_retry) == (499, False)
    assert len(engine.seen) == 2


def test_feedback_is_counted_once(face, url):
    completion, receipt = face.complete_and("accepted", 1, elapsed_ms=400)
    assert (receipt.rank, receipt.counted) == (1, True)
    with Superdraft(url) as client:
        assert client.feedback(completion.id, "accepted", 1).counted is False
        assert client.feedback(completion.id, "shown", 1).counted is True
        assert client.feedback(completion.id, "dismissed", 0).rank == 0
    metrics = httpx.get(f"{url}/metrics").text
    assert 'superdraft_draft_events_total{event="accepted",rank="1"} 1' in metrics


def test_feedback_for_a_completion_that_nobody_knows(face):
    with pytest.raises(NotFoundError) as caught:
        face.call("feedback", "drafts-none", "shown")
    assert caught.value.code == "completion_not_found"


def test_models(face):
    models = face.call("models")
    assert {"tiny", "superdraft", "tiny:sample"} <= {model.id for model in models}
    assert models[0].max_model_len > 0
