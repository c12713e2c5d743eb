"""Tiny n-gram model with hand-written probabilities, and functions to write it to disk as a real model."""

import sys
from dataclasses import replace
from pathlib import Path

import kenlm

from superdraft.ngram_models.store.manifest import (
    BINARY_FILE,
    CorpusSummary,
    Manifest,
    TokenizerIdentity,
    file_sha256,
)

# The corpus contains tokens 3 to 6. 0 and 2 end a text. 1 and 7 are in the vocabulary but not in the corpus.
END_OF_TEXT_IDS = (0, 2)
VOCABULARY_SIZE = 8
FINGERPRINT = "a" * 64

TINY_ARPA = """\\data\\
ngram 1=7
ngram 2=5
ngram 3=2

\\1-grams:
-3.0\t<unk>\t0
0\t<s>\t-0.5
-1.0\t</s>\t0
-0.7\t3\t-0.2
-0.8\t4\t-0.3
-0.9\t5\t-0.4
-1.1\t6\t0

\\2-grams:
-0.1\t<s> 3\t-0.6
-0.25\t3 4\t-0.15
-0.35\t4 5\t-0.05
-0.45\t5 4\t0
-0.55\t5 </s>\t0

\\3-grams:
-0.02\t<s> 3 4
-0.03\t3 4 5

\\end\\
"""


def write_arpa(folder: Path) -> Path:
    path = folder / "tiny.arpa"
    path.write_text(TINY_ARPA, encoding="ascii")
    return path


def load_arpa(path: Path) -> kenlm.Model:
    config = kenlm.Config()
    config.show_progress = False
    config.arpa_complain = kenlm.ARPALoadComplain.NONE
    return kenlm.Model(str(path), config)


def tiny_manifest(**changes: object) -> Manifest:
    manifest = Manifest(
        name="tiny",
        order=3,
        tokenizer=TokenizerIdentity("toy", FINGERPRINT, VOCABULARY_SIZE, END_OF_TEXT_IDS),
        corpus=CorpusSummary("by hand", 12, 2),
        licence="Apache-2.0",
        binary_sha256="0" * 64,
        binary_bytes=1,
        prune=(0, 0, 0),
        quantize_bits=None,
        backoff_quantize_bits=None,
        build_tool="none",
    )
    return replace(manifest, **changes)


def write_tiny_model(folder: Path) -> Manifest:
    """Write a model folder that can be loaded. KenLM accepts ARPA text in place of a binary."""
    folder.mkdir(parents=True)
    binary = folder / BINARY_FILE
    binary.write_text(TINY_ARPA, encoding="ascii")
    manifest = tiny_manifest(binary_sha256=file_sha256(binary), binary_bytes=binary.stat().st_size)
    manifest.write(folder)
    return manifest


FAKE_LMPLZ = """#!{python}
import json, pathlib, sys
here = pathlib.Path(__file__).parent
(here / "lmplz.json").write_text(json.dumps(sys.argv[1:]))
(here / "stdin.txt").write_bytes(sys.stdin.buffer.read())
sys.stdout.write((here / "tiny.arpa").read_text())
"""

FAKE_BUILD_BINARY = """#!{python}
import json, pathlib, shutil, sys
(pathlib.Path(__file__).parent / "build_binary.json").write_text(json.dumps(sys.argv[1:]))
shutil.copyfile(sys.argv[-2], sys.argv[-1])
"""

FAILING_TOOL = """#!{python}
import sys
sys.stdin.buffer.readline()
sys.stderr.write("cannot do\\nthat\\n")
sys.exit(3)
"""


def write_tool(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(script.format(python=sys.executable), encoding="utf-8")
    path.chmod(0o755)


def write_fake_tools(folder: Path) -> Path:
    """Write programs that record their input and build the tiny model from any input."""
    folder.mkdir()
    write_arpa(folder)
    write_tool(folder, "lmplz", FAKE_LMPLZ)
    write_tool(folder, "build_binary", FAKE_BUILD_BINARY)
    return folder
