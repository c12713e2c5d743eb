"""Three drafts for one prompt, as they grow and when they are finished.

superdraft serve &
python examples/quickstart.py http://127.0.0.1:8000 "Thank you for your email. I will"
"""

import sys

from superdraft.client import Superdraft
from superdraft.client.errors import ClientError, OverloadedError


def main(url: str = "http://127.0.0.1:8000", prompt: str = "Thank you for your email. I will") -> None:
    """Complete the prompt at once, then as a stream, and tell the server which draft was taken."""
    with Superdraft(url) as client:
        completion = client.complete(prompt, num_drafts=3, max_tokens=10)
        for draft in completion.drafts:
            print(f"{draft.score:7.3f} {draft.text!r}")
        print(f"{completion.timings.total_ms:.0f} ms, {completion.usage.forward_rows} rows of the model")

        completion.shown()
        print("counted:", completion.accepted(rank=0).counted)

        with client.stream(prompt, num_drafts=3, max_tokens=10) as stream:
            for snapshot in stream:
                print(f"step {snapshot.step}: {snapshot.drafts[0].text!r}, of which {snapshot.stable_text!r} is sure")
            print("finished:", repr(stream.result().drafts[0].text))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except OverloadedError as error:  # errors are told apart by what one would do about them
        sys.exit(f"The server is busy, try again in {error.retry_after_s or 1:g} s.")
    except ClientError as error:
        sys.exit(str(error))
