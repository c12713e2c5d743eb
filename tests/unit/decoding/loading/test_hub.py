"""Fetching weights from the hub, over a fake of its client."""

import json

import pytest
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from superdraft.decoding import progress
from superdraft.decoding.loading import hub


class FakeHub:
    """A repository's files, by name; the client's cache is a folder."""

    def __init__(self, cache, files):
        self.cache, self.files, self.fetched, self.bars = cache, files, [], []
        self.is_offline = False

    def download(self, hub_id, name, tqdm_class=None):
        assert hub_id == "some/model"
        if self.is_offline:
            raise LocalEntryNotFoundError("offline")
        if name not in self.files:
            raise EntryNotFoundError(name)
        if not (self.cache / name).exists():
            self.fetched.append(name)
            if tqdm_class is not None:
                with tqdm_class(total=len(self.files[name]), initial=0, unit="B", desc=name) as bar:
                    bar.update(len(self.files[name]) // 2)
                    self.bars.append((name, bar))
        (self.cache / name).write_bytes(self.files[name])
        return str(self.cache / name)

    def look_up(self, hub_id, name):
        path = self.cache / name
        return str(path) if path.exists() else None


@pytest.fixture
def repository(tmp_path, monkeypatch):
    def make(files):
        fake = FakeHub(tmp_path, {name: content.encode() for name, content in files.items()})
        monkeypatch.setattr(hub, "hf_hub_download", fake.download)
        monkeypatch.setattr(hub, "try_to_load_from_cache", fake.look_up)
        return fake

    return make


SHARDED = {
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "1.safetensors", "b": "2.safetensors", "c": "1.safetensors"}}
    ),
    "1.safetensors": "x" * 100,
    "2.safetensors": "y" * 50,
}


def test_one_file_is_fetched_once(repository):
    fake = repository({"model.safetensors": "weights", "pytorch_model.bin": "never"})
    hub.fetch_weights("some/model")
    hub.fetch_weights("some/model")
    assert fake.fetched == ["model.safetensors"]


def test_shards_are_fetched_as_the_index_says(repository):
    fake = repository(SHARDED)
    hub.fetch_weights("some/model")
    assert fake.fetched == ["model.safetensors.index.json", "1.safetensors", "2.safetensors"]


def test_a_repository_without_safetensors_is_left_to_its_reader(repository):
    fake = repository({"pytorch_model.bin": "never"})
    hub.fetch_weights("some/model")
    assert fake.fetched == []


def test_without_a_network_what_is_not_cached_is_left_to_its_reader(repository):
    repository({}).is_offline = True
    hub.fetch_weights("some/model")
    assert hub.cached_bytes("some/model") is None


def test_a_failure_of_the_network_is_passed_on(repository, monkeypatch):
    def fail(*args, **options):
        raise ConnectionError("no route")

    monkeypatch.setattr(hub, "hf_hub_download", fail)
    with pytest.raises(ConnectionError):
        hub.fetch_weights("some/model")


def test_what_is_fetched_is_told_with_its_bytes(repository, monkeypatch, capsys):
    repository(SHARDED)
    stages = []
    original = progress.Stage.__init__
    monkeypatch.setattr(progress.Stage, "__init__", lambda self, *args: (stages.append(self), original(self, *args))[1])
    hub.fetch_weights("some/model")
    assert [(stage.what, stage.total, stage._done) for stage in stages if stage.total] == [
        ("Fetching 1.safetensors of some/model", 100, 50),
        ("Fetching 2.safetensors of some/model", 50, 25),
    ]
    assert capsys.readouterr() == ("", "")


def test_the_cache_is_complete_only_with_all_shards(repository):
    fake = repository(SHARDED)
    assert hub.cached_bytes("some/model") is None
    hub.fetch_weights("some/model")
    assert hub.cached_bytes("some/model") == 150
    (fake.cache / "2.safetensors").unlink()
    assert hub.cached_bytes("some/model") is None


def test_a_single_file_is_found_in_the_cache(repository):
    repository({"model.safetensors": "weights"})
    hub.fetch_weights("some/model")
    assert hub.cached_bytes("some/model") == 7
