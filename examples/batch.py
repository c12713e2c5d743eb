"""Batch completion of many prompts. Input: JSON lines with a field "prompt". Output: JSON lines with "drafts".

    superdraft serve &
    python examples/batch.py http://127.0.0.1:8000 < prompts.jsonl > drafts.jsonl

The number of concurrent requests should not exceed the server's slots. A full server refuses further requests, because
a late answer is useless to a person who is typing. This script retries refused prompts.
"""

import asyncio
import json
import sys
from typing import TextIO

from superdraft.client import AsyncCompletion, AsyncSuperdraft
from superdraft.client.errors import ClientError, OverloadedError

MAX_CONCURRENT = 4
MAX_ATTEMPTS = 20


async def complete(client: AsyncSuperdraft, prompt: str) -> AsyncCompletion:
    """Return the drafts of a prompt, retrying while the server is overloaded."""
    for _ in range(MAX_ATTEMPTS - 1):
        try:
            return await client.complete(prompt, num_drafts=3, max_tokens=10)
        except OverloadedError as error:  # the server advises against retries, for the sake of newer key presses
            await asyncio.sleep(error.retry_after_s or 1)
    return await client.complete(prompt, num_drafts=3, max_tokens=10)


async def run(url: str | None, lines: TextIO, output: TextIO) -> int:
    """Complete every line, write the answers in order, and return the number of failed prompts."""
    slots = asyncio.Semaphore(MAX_CONCURRENT)

    async with AsyncSuperdraft(url) as client:

        async def answer(line: str) -> dict[str, object]:
            prompt = json.loads(line)["prompt"]
            async with slots:
                try:
                    completion = await complete(client, prompt)
                except ClientError as error:
                    return {"prompt": prompt, "error": str(error)}
            drafts = [{"text": draft.text, "score": draft.score} for draft in completion.drafts]
            return {"prompt": prompt, "drafts": drafts}

        answers = await asyncio.gather(*(answer(line) for line in lines if line.strip()))
    output.writelines(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers)
    return sum("error" in answer for answer in answers)


if __name__ == "__main__":
    failed = asyncio.run(run(sys.argv[1] if len(sys.argv) > 1 else None, sys.stdin, sys.stdout))
    sys.exit(f"Prompts without drafts: {failed}" if failed else 0)
