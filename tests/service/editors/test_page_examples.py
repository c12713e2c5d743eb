"""The texts that the playground proposes, with the default model and the page's own settings: their first drafts."""

import json
import re
from pathlib import Path

import httpx
import pytest
from support.serving import serving

from superdraft.server.serving import load_app
from superdraft.server.settings import Settings
from superdraft.server.wires import pages

STATIC = Path(pages.__file__).parents[1] / "static"
# How the first draft must go on, by the end of the text. It must be probable enough to be shown; others need not be.
WANTED = {
    "lease let me kn": "ow if you have any",
    "any qu": "estions",
    "the inconv": "enience",
    "there was a little": " girl named",
    "of France is": " Paris.",
    "\n    ret": "urn a + b",
}
CUT = re.compile(r"\b(a|an|the|of|to|in|for|with|and|or)$")


def proposed() -> list[str]:
    """The examples' texts, and the one in the empty text area."""
    pairs = re.findall(r'^  (\[".*"\]),$', (STATIC / "examples.js").read_text(), re.MULTILINE)
    (placeholder,) = re.findall(r'placeholder="[^"]*: ([^":]+)"', (STATIC / "playground.html").read_text())
    return [*(json.loads(pair)[1] for pair in pairs), placeholder]


@pytest.fixture(scope="module")
def model_url(default_gguf):
    with serving(load_app(Settings(max_model_len=512, kv_memory=256 * 1024**2))) as url:
        yield url


def test_every_text_has_an_expected_draft():
    texts = proposed()
    assert len(texts) == 7
    assert all(any(text.endswith(end) for end in WANTED) for text in texts)


@pytest.mark.parametrize("text", proposed())
def test_the_first_draft_is_what_a_person_might_write(model_url, text):
    fields = {"num_drafts": 3, "max_tokens": 12, "trigger": "automatic", "single_line": True}
    request = {"prompt": text, "elastic": False, **fields}  # the same on a busy machine
    drafts = httpx.post(f"{model_url}/v1/drafts", json=request).raise_for_status().json()["drafts"]
    (wanted,) = (rest for end, rest in WANTED.items() if text.endswith(end))
    first = drafts[0]["text"]
    assert first.startswith(wanted), first
    assert CUT.search(first) is None, first
