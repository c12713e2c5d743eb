"""Complete many prompts, a few at a time: JSON lines with a field "prompt" in, with a field "drafts" out.

    superdraft serve &
    python examples/batch.py http://127.0.0.1:8000 < prompts.jsonl > drafts.jsonl

Not more at a time than the server has slots: it refuses what it has no room for, since to somebody who types a late
answer is worth nothing. A refused prompt is tried again here.
"""

import asyncio
import json
import sys
from typing import TextIO

from superdraft.client import AsyncCompletion, AsyncSuperdraft
from superdraft.client.errors import ClientError, OverloadedError

AT_ONCE = 4
MAX_ATTEMPTS = 20


async def complete(client: AsyncSuperdraft, prompt: str) -> AsyncCompletion:
    """The drafts, however often the server has to be asked for them."""
    for _ in range(MAX_ATTEMPTS - 1):
        try:
            return await client.complete(prompt, num_drafts=3, max_tokens=10)
        except OverloadedError as error:  # "send the next key press, not this one again": but here there is no next
            await asyncio.sleep(error.retry_after_s or 1)
    return await client.complete(prompt, num_drafts=3, max_tokens=10)


async def run(url: str, lines: TextIO, output: TextIO) -> int:
    """Complete every line, in order; how many could not be."""
    places = asyncio.Semaphore(AT_ONCE)

    async with AsyncSuperdraft(url) as client:

        async def answer(line: str) -> dict[str, object]:
            prompt = json.loads(line)["prompt"]
            async with places:
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
    failed = asyncio.run(run(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000", sys.stdin, sys.stdout))
    sys.exit(f"{failed} prompts have no drafts" if failed else 0)
