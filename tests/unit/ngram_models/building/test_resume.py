"""Killed builds: what the next run reuses, what it removes, and that incomplete files are never used."""

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.ngram import FAILING_TOOL, FAKE_BUILD_BINARY, FAKE_LMPLZ, FINGERPRINT, write_arpa, write_tool
from support.waiting import PATIENCE_S, eventually

from superdraft.ngram_models.building import programs
from superdraft.ngram_models.building.build import BuildOptions, build_ngram_model
from superdraft.ngram_models.building.work_folder import unfinished_builds
from superdraft.ngram_models.errors import BuildToolMissingError, CorpusError, NgramBuildError, NgramModelNotFoundError
from superdraft.ngram_models.store.manifest import BINARY_FILE, Manifest, TokenizerIdentity
from superdraft.ngram_models.store.registry import list_ngram_models, load_ngram_model
from superdraft.ngram_models.tools import find_tools

# A program that records its process id, waits as long as a certain file exists, and then runs the real program.
WAITING_TOOL = """#!{python}
import os, pathlib, sys, time
here = pathlib.Path(__file__).parent
(here / "NAME.pid.partial").write_text(str(os.getpid()))
(here / "NAME.pid.partial").rename(here / "NAME.pid")
while (here / "NAME.wait").exists():
    time.sleep(0.01)
os.execv(here / "NAME.then", sys.argv)
"""

# Builds a model as described by its argument, in JSON; every shard holds one document. The build stops at `stop_at`:
# after that many documents, or (for "publish") between the two renames.
BUILD = """
import json, sys, time
from pathlib import Path
from superdraft.ngram_models.building import shards
from superdraft.ngram_models.building import work_folder
from superdraft.ngram_models.building.build import BuildOptions, build_ngram_model
from superdraft.ngram_models.building.corpus import Text
from superdraft.ngram_models.building.encoder import Encoder
from superdraft.ngram_models.store.manifest import TokenizerIdentity
from superdraft.ngram_models.tools import find_tools

task = json.loads(sys.argv[1])
shards.SHARD_BYTES = 1

def stop():
    Path(task["stopped"]).touch()
    time.sleep(600)

class Tokenizer:
    def __call__(self, texts, **options):
        with Path(task["encoded"]).open("a") as file:
            file.writelines(text + "\\n" for text in texts)
        return {"input_ids": [[int(word) for word in text.split()] for text in texts]}

def documents():
    for number, text in enumerate(task["documents"]):
        if number == task.get("stop_at"):
            stop()
        yield Text(text)

def publish(self):
    self.model.rename(self.old)
    stop()

if task.get("stop_at") == "publish":
    work_folder.WorkFolder.publish = publish
build_ngram_model(documents(), Path(task["folder"]), tokenizer=TokenizerIdentity(*task["tokenizer"]),
                  tools=find_tools(Path(task["tools"])), encoder=Encoder(Tokenizer()),
                  options=BuildOptions(**task.get("options", {"order": 3})), description="", licence="")
"""
TOKENIZER = ("toy", FINGERPRINT, 100, (0, 2))
DOCUMENTS = ["3 4", "3 4 5", "6 6", "5 4", "3", "4 4 4"]
LINES = "".join(f"{document}\n" for document in DOCUMENTS)


class Workshop:
    """A home with one model to build, and KenLM's programs, which can be made to wait."""

    def __init__(self, home):
        self.home = home
        self.folder = home / "ngram" / "mine"
        self.bin = home / "bin"
        self.bin.mkdir(parents=True)
        write_arpa(self.bin)
        for name, script in (("lmplz", FAKE_LMPLZ), ("build_binary", FAKE_BUILD_BINARY)):
            write_tool(self.bin, f"{name}.then", script)
            write_tool(self.bin, name, WAITING_TOOL.replace("NAME", name))

    def start(self, documents=DOCUMENTS, **task):
        paths = {"stopped": self.home / "stopped", "encoded": self.home / "encoded", "folder": self.folder}
        task |= {name: str(path) for name, path in paths.items()} | {"tools": str(self.bin), "tokenizer": TOKENIZER}
        command = [sys.executable, "-c", BUILD, json.dumps(task | {"documents": documents})]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def build(self, documents=DOCUMENTS, **task):
        """Run a whole build; returns the documents that were tokenised."""
        encoded = self.home / "encoded"
        encoded.unlink(missing_ok=True)
        for program in ("lmplz", "build_binary"):
            (self.bin / f"{program}.json").unlink(missing_ok=True)
        with self.start(documents, **task) as process:
            errors = process.communicate(timeout=PATIENCE_S)[1]
        assert process.returncode == 0, errors
        return encoded.read_text().splitlines() if encoded.exists() else []

    def ran(self, program):
        return (self.bin / f"{program}.json").exists()

    def trained_on(self):
        return (self.bin / "stdin.txt").read_text()

    def killed_at(self, stage, **task):
        """Run a build and kill it at a stage: a number of documents, the name of a program or "publish"."""
        with self.stopped_at(stage, **task):
            pass

    @contextmanager
    def stopped_at(self, stage, **task):
        """A build that waits at a stage and is killed on exit."""
        stopped = self.home / "stopped"
        if stage in ("lmplz", "build_binary"):
            (self.bin / f"{stage}.wait").touch()
            stopped = self.bin / f"{stage}.pid"
        else:
            task["stop_at"] = stage
        with self.start(**task) as process:
            assert eventually(lambda: stopped.exists() or process.poll() is not None)
            assert process.poll() is None, process.stderr.read()
            try:
                yield
            finally:
                os.kill(process.pid, signal.SIGKILL)
        stopped.unlink()
        (self.bin / f"{stage}.wait").unlink(missing_ok=True)

    def work(self):
        return self.folder.parent / ".mine.build"

    def left(self):
        return sorted(path.name for path in self.folder.parent.iterdir())


@pytest.fixture
def workshop(tmp_path):
    return Workshop(tmp_path)


@pytest.mark.parametrize("stage", [5, "lmplz", "build_binary"])
def test_a_killed_build_leaves_nothing_that_is_listed_or_loads(workshop, stage):
    workshop.killed_at(stage)
    assert workshop.left() == [".mine.build"]
    assert {model.name for model in list_ngram_models(workshop.home)} == {"smollm2-135m"}
    assert unfinished_builds(workshop.folder.parent) == [("mine", workshop.work())]
    for path in (workshop.folder, workshop.work(), workshop.work() / "new"):
        with pytest.raises(NgramModelNotFoundError):
            load_ngram_model(path, fingerprint=FINGERPRINT)


@pytest.mark.parametrize("stage", [5, "lmplz", "build_binary"])
def test_the_existing_model_is_served_until_the_next_build_is_done(workshop, stage):
    workshop.build(["3 4"])
    workshop.killed_at(stage)
    assert load_ngram_model(workshop.folder, fingerprint=FINGERPRINT).manifest.corpus.num_tokens == 3
    workshop.build()
    assert load_ngram_model(workshop.folder, fingerprint=FINGERPRINT).manifest.corpus.num_documents == len(DOCUMENTS)
    assert workshop.left() == ["mine"]


def test_a_build_killed_while_reading_tokenises_only_the_rest(workshop):
    workshop.killed_at(5)
    assert workshop.build() == DOCUMENTS[5:]
    assert workshop.trained_on() == LINES
    assert Manifest.read(workshop.folder).corpus.num_tokens == 19
    assert workshop.left() == ["mine"]


def test_a_build_killed_in_lmplz_tokenises_nothing(workshop):
    workshop.killed_at("lmplz")
    assert workshop.build() == []
    assert workshop.trained_on() == LINES
    assert workshop.left() == ["mine"]


def test_a_build_killed_in_build_binary_only_packs(workshop):
    workshop.killed_at("build_binary")
    assert workshop.build() == []
    assert not workshop.ran("lmplz")
    manifest = Manifest.read(workshop.folder)
    assert manifest.ngram_counts == (7, 5, 2)
    assert manifest.corpus.num_documents == len(DOCUMENTS)
    assert workshop.left() == ["mine"]


def test_repeatedly_killed_builds_do_not_pile_up_files(workshop):
    kept = set()
    for _ in range(3):
        workshop.killed_at("build_binary")
        assert workshop.left() == [".mine.build"]
        kept.add(tuple(sorted(path.name for path in workshop.work().rglob("*") if path.suffix in (".zst", ".arpa"))))
    assert len(kept) == 1


def test_other_documents_start_clean(workshop):
    workshop.killed_at("build_binary")
    others = ["5 5", "6", *DOCUMENTS[2:]]
    assert workshop.build(others) == others[:2]
    assert workshop.ran("lmplz")
    assert workshop.trained_on() == "".join(f"{document}\n" for document in others)


def test_documents_in_another_order_are_another_corpus(workshop):
    workshop.killed_at("build_binary")
    workshop.build(DOCUMENTS[::-1])
    assert workshop.ran("lmplz")
    assert workshop.trained_on().splitlines() == DOCUMENTS[::-1]


@pytest.mark.parametrize("options", [{"order": 2}, {"order": 3, "prune": [0, 3]}])
def test_other_options_reuse_the_tokenised_corpus_and_estimate_again(workshop, options):
    workshop.killed_at("build_binary")
    assert workshop.build(options=options) == []
    assert workshop.ran("lmplz")


def test_another_quantisation_or_memory_only_packs(workshop):
    workshop.killed_at("build_binary")
    assert workshop.build(options={"order": 3, "quantize_bits": 5, "memory": "1G"}) == []
    assert not workshop.ran("lmplz")
    assert Manifest.read(workshop.folder).quantize_bits == 5


def test_a_build_killed_between_two_renames_gets_the_old_model_back(workshop):
    workshop.build(["3 4"])
    workshop.killed_at("publish")
    assert not workshop.folder.exists()
    with pytest.raises(CorpusError):
        build_here(workshop, [])
    assert load_ngram_model(workshop.folder, fingerprint=FINGERPRINT).manifest.corpus.num_tokens == 3


def test_a_failed_program_keeps_the_tokenised_corpus(workshop):
    write_tool(workshop.bin, "lmplz.then", FAILING_TOOL)
    with workshop.start() as process:
        assert "lmplz failed with exit code 3" in process.communicate(timeout=PATIENCE_S)[1]
    write_tool(workshop.bin, "lmplz.then", FAKE_LMPLZ)
    assert workshop.build() == []
    assert workshop.left() == ["mine"]


def test_a_damaged_shard_is_reported_and_never_taken_for_a_shorter_one(workshop):
    workshop.killed_at("lmplz")
    part = next(workshop.work().glob("shards/*.zst"))
    part.write_bytes(part.read_bytes()[:-3])
    with workshop.start() as process:
        assert f"{part} is damaged" in process.communicate(timeout=PATIENCE_S)[1]
    part.unlink()
    assert len(workshop.build()) == 1
    assert workshop.trained_on() == LINES


def test_two_builds_of_one_name_are_refused(workshop):
    with workshop.stopped_at("lmplz"), pytest.raises(NgramBuildError, match="Another process is building 'mine'"):
        build_here(workshop, [[3, 0]])
    assert workshop.build() == []


def test_builds_of_different_names_can_run_at_the_same_time(workshop, tmp_path):
    with workshop.stopped_at(5):
        build_here(workshop, [[3, 0]], workshop.folder.parent / "yours")
    assert workshop.left() == [".mine.build", "yours"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a program when its parent is killed")
def test_lmplz_does_not_outlive_a_killed_build(workshop):
    with workshop.stopped_at("lmplz"):
        pid = int((workshop.bin / "lmplz.pid").read_text())
        os.kill(pid, 0)
    assert eventually(lambda: not is_running(pid))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a program when its parent is killed")
def test_a_program_does_not_start_when_the_build_was_killed_just_before(tmp_path, monkeypatch):
    monkeypatch.setattr(programs.os, "getpid", lambda: 2**22 + 1)  # above every process id, so not the parent's
    with pytest.raises(NgramBuildError, match="touch failed with exit code 1"):
        programs.run_program(["/usr/bin/touch", str(tmp_path / "ran")], stdout=tmp_path / "out", log=tmp_path / "log")
    assert not (tmp_path / "ran").exists()
    monkeypatch.undo()
    programs.run_program(["/usr/bin/touch", str(tmp_path / "ran")], stdout=tmp_path / "out", log=tmp_path / "log")
    assert (tmp_path / "ran").exists()


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def build_here(workshop, documents, folder=None):
    return build_ngram_model(
        documents,
        folder or workshop.folder,
        tokenizer=TokenizerIdentity(*TOKENIZER),
        tools=find_tools(workshop.bin),
        options=BuildOptions(order=3),
        description="",
        licence="",
    )


def real_tools():
    try:
        return find_tools()
    except BuildToolMissingError:
        return None


@pytest.mark.skipif(real_tools() is None, reason="KenLM's lmplz is not installed here: make lmplz builds it")
@pytest.mark.parametrize("stage", [5, "lmplz", "build_binary"])
def test_the_real_programs_make_the_same_model_after_a_kill(workshop, tmp_path, stage):
    for name in ("lmplz", "build_binary"):
        (workshop.bin / f"{name}.then").unlink()
        (workshop.bin / f"{name}.then").symlink_to(getattr(real_tools(), name))
    documents = [" ".join(str(3 + n * factor % 7) for n in range(50)) for factor in range(1, 9)]
    task = {"documents": documents, "options": {"order": 3, "memory": "64M"}}
    workshop.killed_at(stage, **task)
    workshop.build(**task)
    whole = Workshop(tmp_path / "whole")
    whole.bin = workshop.bin
    whole.build(**task)
    assert (workshop.folder / BINARY_FILE).read_bytes() == (whole.folder / BINARY_FILE).read_bytes()
