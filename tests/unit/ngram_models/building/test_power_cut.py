"""Crashes and power cuts while a model is put in its place."""

import shutil

import pytest
from support.crashes import crash_at_every_step

from superdraft.ngram_models.building.work_folder import work_folder
from superdraft.ngram_models.durable import rename_durably
from superdraft.ngram_models.store.manifest import BINARY_FILE, MANIFEST_FILE

OLD, NEW = ({BINARY_FILE: word * 1000, MANIFEST_FILE: b"{}"} for word in (b"old", b"new"))


@pytest.mark.parametrize("has_power", [True, False])
@pytest.mark.parametrize("before", [None, OLD])
def test_a_crash_at_any_step_leaves_a_whole_model_or_none(tmp_path, before, has_power):
    home = tmp_path / "ngram"
    model = home / "mine"

    def publish(files):
        with work_folder(model) as work:
            for name, content in files.items():
                rename_durably_written(work.path / f"{name}.partial", work.new / name, content)
            work.publish()

    def rename_durably_written(partial, final, content):
        if final.name == MANIFEST_FILE:
            partial.write_bytes(content)
            rename_durably(partial, final)
        else:
            final.write_bytes(content)  # by a program of KenLM

    def read():
        return {path.name: path.read_bytes() for path in model.iterdir()} if model.exists() else None

    def reset():
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir()
        if before is not None:
            publish(before)

    found = []

    def check():
        found.append(read())
        publish(NEW)
        assert read() == NEW
        assert [path.name for path in home.iterdir()] == ["mine"]
        reset()

    reset()
    assert crash_at_every_step(home, lambda: publish(NEW), check, has_power=has_power) >= 8
    assert all(one in (before, NEW, None) for one in found)
    assert (found[0], found[-1]) == (before, NEW)
