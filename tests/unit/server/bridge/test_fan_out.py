"""Twin requests share one run: who gets which draft, who cancels it, when it is forgotten, who runs alone."""

import asyncio

import pytest
from pydantic import BaseModel
from starlette.requests import Request
from support.engine import FakeEngine, Job
from support.virtual_time import VirtualTimeLoop
from support.waiting import PATIENCE_S

from superdraft.decoding.errors import SequenceFailedError
from superdraft.decoding.params import GenerationParams
from superdraft.server.bridge.fan_out import FanOut, twin_key

ONE = GenerationParams(num_drafts=1, max_tokens=1)


class Runner:
    """Counts its runs; each waits until the gate is open."""

    def __init__(self, max_distinct_drafts=6):
        self.engine = FakeEngine(max_distinct_drafts=max_distinct_drafts)
        self.gate = asyncio.Event()
        self.started, self.cancelled = [], 0
        self.error = None

    async def __call__(self, params):
        self.started.append(params)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error:
            raise self.error
        return self.engine.output_of(Job("x", (1, 2), params, None, num_steps=params.max_tokens))


def text_of(share):
    (draft,) = share.output.drafts
    assert draft.index == 0
    return draft.text


async def twins(fan_out, runner, num, key="k"):
    tasks = [asyncio.create_task(fan_out.draft(key, ONE, runner)) for _ in range(num)]
    await asyncio.sleep(0)
    return tasks


def test_twins_get_the_drafts_of_one_run_best_first():
    async def main():
        fan_out, runner = FanOut(), Runner()
        tasks = await twins(fan_out, runner, 3)
        runner.gate.set()
        shares = await asyncio.gather(*tasks)
        assert [text_of(share) for share in shares] == [" red0", " green0", " blue0"]
        assert [share.rank for share in shares] == [0, 1, 2]
        assert [share.output.usage.completion_tokens for share in shares] == [1, 1, 1]
        assert [params.num_drafts for params in runner.started] == [3]

    asyncio.run(main())


def test_logprobs_share_nothing_and_change_no_text():
    async def main():
        fan_out, runner = FanOut(window_s=60), Runner()
        runner.gate.set()
        params = GenerationParams(num_drafts=1, max_tokens=1, verify_top=0, num_verified=1)
        for _ in range(2):
            share = await fan_out.draft("k", params, runner)
            assert (text_of(share), share.rank) == (" red0", 0)
        assert [one.num_drafts for one in runner.started] == [3, 3]

    asyncio.run(main())


def test_first_request_does_not_wait_for_twins():
    async def main():
        runner = Runner()
        runner.gate.set()
        share = await asyncio.wait_for(FanOut(window_s=10 * PATIENCE_S).draft("k", ONE, runner), PATIENCE_S)
        assert text_of(share) == " red0"

    asyncio.run(main())


def test_later_twin_within_the_window_gets_the_next_draft_and_after_it_a_new_run():
    async def main():
        fan_out, runner = FanOut(window_s=0.05), Runner()
        runner.gate.set()
        texts = [text_of(await fan_out.draft("k", ONE, runner)) for _ in range(2)]
        assert texts == [" red0", " green0"]
        await asyncio.sleep(0.1)
        assert text_of(await fan_out.draft("k", ONE, runner)) == " red0"
        assert len(runner.started) == 2

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as loop:
        loop.run(main())


@pytest.mark.parametrize("leaves", [False, True])
def test_the_request_that_starts_a_run_gets_the_best_draft_though_a_twin_is_faster(leaves):
    """The run's snapshots are of the best draft, and have gone to the request that started it."""

    async def main():
        fan_out, runner = FanOut(), Runner()
        (first, *others) = await twins(fan_out, runner, 2)
        runner.gate.set()
        (run,) = fan_out._runs.values()
        while not run.task.done():
            await asyncio.sleep(0)
        if leaves:
            first.cancel()
            await asyncio.wait({first})
        faster = await fan_out.draft("k", ONE, runner)  # those that wait have not heard of the end yet
        texts = [text_of(share) for share in await asyncio.gather(*others)]
        if leaves:
            assert {text_of(faster), *texts} == {" red0", " green0"}
        else:
            assert text_of(await first) == " red0"
            assert {text_of(faster), *texts} == {" green0", " blue0"}

    asyncio.run(main())


@pytest.mark.parametrize(("distinct", "texts"), [(6, "red green blue red"), (2, "red green red green")])
def test_more_twins_than_distinct_drafts_start_over(distinct, texts):
    async def main():
        fan_out, runner = FanOut(), Runner(distinct)
        tasks = await twins(fan_out, runner, 4)
        runner.gate.set()
        assert [text_of(share) for share in await asyncio.gather(*tasks)] == [f" {word}0" for word in texts.split()]
        assert len(runner.started) == 1

    asyncio.run(main())


def test_other_keys_have_runs_of_their_own():
    async def main():
        fan_out, runner = FanOut(), Runner()
        runner.gate.set()
        assert [text_of(await fan_out.draft(key, ONE, runner)) for key in "ab"] == [" red0", " red0"]

    asyncio.run(main())


def test_when_one_leaves_the_others_get_the_best_drafts():
    async def main():
        fan_out, runner = FanOut(), Runner()
        first, *others = await twins(fan_out, runner, 3)
        first.cancel()
        await asyncio.sleep(0)
        runner.gate.set()
        assert [text_of(share) for share in await asyncio.gather(*others)] == [" red0", " green0"]
        assert first.cancelled()
        assert runner.cancelled == 0

    asyncio.run(main())


def test_when_all_leave_the_run_is_cancelled_and_the_next_one_starts_anew():
    async def main():
        fan_out, runner = FanOut(), Runner()
        tasks = await twins(fan_out, runner, 2)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        (newer,) = await twins(fan_out, runner, 1)
        runner.gate.set()
        assert text_of(await newer) == " red0"
        assert (len(runner.started), runner.cancelled) == (2, 1)

    asyncio.run(main())


def test_every_twin_gets_the_error_and_the_next_one_starts_anew():
    async def main():
        fan_out, runner = FanOut(), Runner()
        runner.error = SequenceFailedError("No numbers.")
        tasks = await twins(fan_out, runner, 2)
        runner.gate.set()
        errors = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(error) for error in errors] == [SequenceFailedError] * 2
        runner.error = None
        assert text_of(await fan_out.draft("k", ONE, runner)) == " red0"

    asyncio.run(main())


@pytest.mark.parametrize(
    "change",
    [
        {"num_drafts": 2},
        {"max_tokens": 0},  # a warm-up
        {"strategy": "sample"},
        {"strategy": "greedy"},
        {"seed": 1},
        {"reset_every": 2},
    ],
)
def test_who_runs_alone(change):
    params = GenerationParams(**({"num_drafts": 1, "max_tokens": 1} | change))

    async def main():
        fan_out, runner = FanOut(), Runner()
        runner.gate.set()
        for _ in range(2):
            share = await fan_out.draft("k", params, runner)
            assert (share.rank, len(share.output.drafts)) == (0, params.num_drafts)
        assert runner.started == [params] * 2

    asyncio.run(main())


@pytest.mark.parametrize(("fan_out", "key"), [(FanOut(1), "k"), (FanOut(3), None)])
def test_off_by_setting_or_for_a_retry(fan_out, key):
    async def main():
        runner = Runner()
        runner.gate.set()
        assert [text_of(await fan_out.draft(key, ONE, runner)) for _ in range(2)] == [" red0"] * 2
        assert runner.started == [ONE] * 2

    asyncio.run(main())


def test_memory_is_bounded_and_the_running_are_kept():
    async def main():
        fan_out, runner = FanOut(max_runs=3), Runner()
        running = await twins(fan_out, runner, 1, "a")
        finished = Runner()
        finished.gate.set()
        for key in "bcdefgh":
            await fan_out.draft(key, ONE, finished)
        assert len(fan_out._runs) == 3
        for key in "xy":
            running += await twins(fan_out, runner, 1, key)
        running += await twins(fan_out, runner, 2, "z")  # no room: each alone
        assert set(fan_out._runs) == {"a", "x", "y"}
        assert [params.num_drafts for params in runner.started] == [3, 3, 3, 1, 1]
        runner.gate.set()
        assert [text_of(share) for share in await asyncio.gather(*running)] == [" red0"] * 5

    asyncio.run(main())


def test_run_without_drafts_is_answered():
    async def main():
        runner = Runner(max_distinct_drafts=0)
        runner.gate.set()
        assert (await FanOut().draft("k", ONE, runner)).output.drafts == ()

    asyncio.run(main())


class Body(BaseModel):
    prompt: str = "hi"
    seed: int | None = None


def key_of(body=None, path="/infill", **headers):
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": pairs, "server": ("x", 80)}
    return twin_key(Request(scope), body or Body())


def test_twins_have_the_same_route_key_session_and_fields():
    keys = [
        key_of(),
        key_of(Body(prompt="ho")),
        key_of(path="/v1/completions"),
        key_of(authorization="Bearer a"),
        key_of(authorization="Bearer b"),
        key_of(x_api_key="a"),
        key_of(x_session_id="a"),
    ]
    assert len(set(keys)) == len(keys)
    assert key_of() == key_of(user_agent="other", x_stainless_retry_count="0")
    assert "hi" not in keys[0]


def test_retry_is_no_twin():
    assert key_of(x_stainless_retry_count="1") is None
