"""OpenAI's own Python package against the running server: what it reads, raises, retries and cancels."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
from support.serving import num_commands, num_twins, serving
from support.waiting import eventually

from superdraft.client import Superdraft
from superdraft.decoding.errors import SequenceFailedError
from superdraft.server.app import create_app
from superdraft.server.settings import Settings

HELLO = {"model": "tiny", "prompt": "hi", "max_tokens": 3}


@pytest.fixture
def sdk(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def joined(chunks):
    """The text of each index, and how it ended."""
    texts, ends = {}, {}
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
            if choice.finish_reason is not None:
                ends[choice.index] = choice.finish_reason
    assert set(texts) == set(ends)
    return texts


def test_choices_logprobs_and_usage(sdk):
    completion = sdk.completions.create(**HELLO, n=3, logprobs=2, extra_body={"top_k": 5})
    assert [choice.text.split()[0] for choice in completion.choices] == ["red0", "green0", "blue0"]
    assert completion.choices[0].logprobs.tokens == [" red0", " red1", " red2"]
    assert completion.choices[0].logprobs.text_offset == [0, 5, 10]
    assert completion.choices[0].logprobs.top_logprobs[0] == {" alt": -0.125, " red0": -1.0}
    assert completion.choices[0].score == -0.5  # beyond OpenAI's shape
    assert completion.usage.total_tokens == 11
    assert completion.usage.prompt_tokens_details.cached_tokens == 2
    assert completion._request_id.startswith("req-")


def test_every_field_of_the_sdk_is_taken(sdk, engine):
    completion = sdk.completions.create(
        **HELLO,
        best_of=4,
        echo=True,
        frequency_penalty=0.5,
        logit_bias={"5": -1},
        logprobs=1,
        n=2,
        presence_penalty=0.5,
        seed=3,
        stop=["never", "ever"],
        stream=False,
        suffix="",
        temperature=0.5,
        top_p=0.9,
        user="somebody",
    )
    assert [choice.text[:5] for choice in completion.choices] == ["hi re", "hi gr"]
    assert len(completion.warnings) == 3
    assert engine.seen[0].params.num_drafts == 4


def test_strategy_in_the_extra_body_or_the_models_name(sdk, engine):
    for fields in ({"extra_body": {"strategy": "sample"}}, {"model": "tiny:sample"}):
        completion = sdk.completions.create(**{**HELLO, **fields}, n=2, temperature=0.5, seed=3)
        assert len(completion.choices) == 2
        assert engine.seen[-1].params.strategy == "sample"


def test_models(sdk):
    models = {model.id: model for model in sdk.models.list()}
    assert list(models)[:2] == ["tiny", "superdraft"]
    assert "superdraft:sample" in models
    for name in models:
        assert sdk.models.retrieve(name).id == name
    with pytest.raises(openai.NotFoundError):
        sdk.models.retrieve("gpt-4")


@pytest.mark.usefixtures("kept_up_with")
def test_stream_is_the_answer_in_pieces(sdk):
    fields = {**HELLO, "prompt": ["hi", "ho"], "n": 2}
    chunks = list(sdk.completions.create(**fields, stream=True, stream_options={"include_usage": True}))
    assert len(chunks) > 5
    unary = sdk.completions.create(**fields)
    assert joined(chunks) == {choice.index: choice.text for choice in unary.choices}
    assert chunks[-1].choices == []
    assert chunks[-1].usage == unary.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_async_calls_at_the_same_time_stream_or_not(url):
    async def ask(client, i):
        fields = {"model": "tiny", "prompt": "x" * (i + 1), "max_tokens": i + 1}
        if i % 2:
            return (await client.completions.create(**fields)).choices[0].text
        chunks = await client.completions.create(**fields, stream=True)
        return joined([chunk async for chunk in chunks])[0]

    async def main():
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*[ask(client, i) for i in range(12)])

    assert asyncio.run(main()) == ["".join(f" red{j}" for j in range(i + 1)) for i in range(12)]


@pytest.mark.parametrize("stream", [False, True])
def test_errors(sdk, stream):
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.completions.create(**HELLO, n=0, stream=stream)
    assert (caught.value.param, caught.value.code, caught.value.type) == ("n", "invalid_value", "invalid_request_error")
    assert caught.value.request_id.startswith("req-")
    with pytest.raises(openai.NotFoundError) as missing:
        sdk.completions.create(model="gpt-4", prompt="hi", stream=stream)
    assert missing.value.code == "model_not_found"


@pytest.mark.usefixtures("kept_up_with")
def test_error_in_mid_stream_is_raised(sdk, engine):
    keep_up = engine.on_step

    def fail():
        keep_up()
        for job in engine.jobs.values():
            if job.num_steps == 3:
                engine.fail[job.request_id] = SequenceFailedError("No numbers.")

    engine.on_step = fail
    texts = []
    with pytest.raises(openai.APIError, match="No numbers") as caught:
        texts.extend(
            chunk.choices[0].text for chunk in sdk.completions.create(**{**HELLO, "max_tokens": 9}, n=2, stream=True)
        )
    assert texts == [" "]
    assert caught.value.code == "sequence_failed"


def test_closed_stream_cancels(app, sdk, engine, stepwise):
    stepwise.release()
    stream = sdk.completions.create(**{**HELLO, "max_tokens": 50}, n=2, stream=True)
    assert next(iter(stream)).choices[0].text == " "
    stream.close()
    # The engine may take the command before it is seen here.
    assert eventually(lambda: num_commands(app) + len(engine.cancelled) == 1)
    stepwise.release(100)
    assert eventually(lambda: len(engine.cancelled) == 1)
    assert engine.jobs == {}


def test_cancelled_async_call_cancels(app, url, engine, stepwise):
    async def main():
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            task = asyncio.create_task(client.completions.create(**{**HELLO, "max_tokens": 50}))
            assert await asyncio.to_thread(eventually, lambda: len(engine.seen) == 1)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())
    assert eventually(lambda: num_commands(app) == 1)
    stepwise.release(100)
    assert eventually(lambda: len(engine.cancelled) == 1)


def sent_and_error(url, path, body):
    """How often the SDK, with its usual two retries, sends a request that is refused, and what it raises."""
    sent = []
    http_client = httpx.Client(event_hooks={"request": [sent.append]})
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=2, http_client=http_client) as client,
        pytest.raises(openai.APIStatusError) as caught,
    ):
        client.post(path, body=body, cast_to=object)
    return len(sent), caught.value.status_code


def test_wrong_requests_are_not_retried(url):
    assert sent_and_error(url, "/completions", {"prompt": "hi", "n": 0}) == (1, 400)


def test_failed_requests_are_retried(url, engine):
    def crash():
        if len(engine.seen) < 3:
            raise RuntimeError("CUDA error")

    engine.on_step = crash
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=2) as client:
        assert client.completions.create(**HELLO).choices[0].text == " red0 red1 red2"
    assert len(engine.seen) == 3


def test_retry_hint_of_a_server_that_stops_is_obeyed(engine, monkeypatch):
    """`retry-after-ms` says one second: the SDK's own pause would be half of it."""
    pauses_s, pause_s = [], openai.OpenAI._calculate_retry_timeout

    def noted(self, *args):
        pauses_s.append(pause_s(self, *args))
        return 0

    monkeypatch.setattr(openai.OpenAI, "_calculate_retry_timeout", noted)
    app = create_app(Settings(shutdown_grace_s=0), engine, model_name="tiny")
    with serving(app) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=1) as client:
        app.state.service.engine._thread._accepting = False  # as in a shutdown, but with an open door
        with pytest.raises(openai.InternalServerError) as caught:
            client.completions.create(**HELLO)
        assert caught.value.status_code == 503
    assert pauses_s == [1.0]


def test_superseded_request_is_not_retried(app, url, engine, stepwise):
    body = {"prompt": "hi", "session_id": "me", "max_tokens": 50}
    with ThreadPoolExecutor() as pool, Superdraft(url) as client:
        older = pool.submit(sent_and_error, url, "/drafts", body)
        assert eventually(lambda: len(engine.seen) == 1)
        newer = pool.submit(client.complete, "hi", max_tokens=1, session_id="me")
        assert eventually(lambda: num_commands(app) == 1)
        stepwise.release(100)
        assert newer.result().drafts
        assert older.result() == (1, 499)


def test_twins_get_different_drafts_and_a_retry_the_best(app, url, stepwise):
    async def main():
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            tasks = [asyncio.create_task(client.completions.create(**HELLO)) for _ in range(3)]
            assert await asyncio.to_thread(eventually, lambda: num_twins(app) == 3)
            stepwise.release(100)
            twins = await asyncio.gather(*tasks)
            retry = await client.completions.create(**HELLO, extra_headers={"x-stainless-retry-count": "1"})
        return [twin.choices[0].text.split()[0] for twin in twins], retry.choices[0].text.split()[0]

    twins, retry = asyncio.run(main())
    assert sorted(twins) == ["blue0", "green0", "red0"]
    assert retry == "red0"


def test_raw_stream_ends_as_the_sdk_expects(sdk):
    with sdk.completions.with_streaming_response.create(**HELLO, stream=True) as response:
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert json.loads(lines[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
