"""Quick start: three drafts for one prompt, first complete and then as a stream.

Usage:

    superdraft serve &
    python examples/quickstart.py http://127.0.0.1:8000 "Thank you for your email. I will"
"""

import sys

from superdraft.client import Superdraft
from superdraft.client.errors import ClientError, OverloadedError


def main(url: str | None = None, prompt: str = "Thank you for your email. I will") -> None:
    """Complete the prompt, report which draft was accepted, and complete the prompt again as a stream."""
    with Superdraft(url) as client:
        completion = client.complete(prompt, num_drafts=3, max_tokens=10)
        for draft in completion.drafts:
            print(f"{draft.score:7.3f} {draft.text!r}")
        print(f"{completion.timings.total_ms:.0f} ms, {completion.usage.forward_rows} model rows")

        completion.shown()
        print("counted:", completion.accepted(rank=0).counted)

        with client.stream(prompt, num_drafts=3, max_tokens=10) as stream:
            for snapshot in stream:
                texts = [draft.text for draft in snapshot.drafts]
                print(f"step {snapshot.step}: {texts}; {snapshot.stable_text!r} is final")
            print("finished:", [draft.text for draft in stream.result().drafts])


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except OverloadedError as error:  # there is an exception class for each way of handling an error
        sys.exit(f"The server is busy, try again in {error.retry_after_s or 1:g} s.")
    except ClientError as error:
        sys.exit(str(error))
