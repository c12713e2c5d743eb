"""Files and folders that are whole or not there."""

import os
import shutil
import threading
import time

import pytest
from filelock import FileLock
from support.crashes import crash_at_every_step

from superdraft.decoding import durable
from superdraft.decoding.durable import facts, locked, new_file, new_folder, sample

OLD, NEW = {"a": b"old " * 3000, "b": b"old"}, {"a": b"new " * 5000, "c": b"new"}


def write(folder, files):
    for name, content in files.items():
        (folder / name).write_bytes(content)


def read(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else None


def test_a_folder_takes_the_place_of_another(tmp_path):
    for files in (OLD, NEW):
        with new_folder(tmp_path / "it") as folder:
            write(folder, files)
    assert read(tmp_path / "it") == NEW
    assert [path.name for path in tmp_path.iterdir()] == ["it"]


@pytest.mark.parametrize("failure", [OSError, KeyboardInterrupt])
def test_a_failure_changes_nothing_and_leaves_nothing(tmp_path, failure):
    with new_folder(tmp_path / "it") as folder:
        write(folder, OLD)
    with new_file(tmp_path / "file") as path:
        path.write_bytes(b"old")

    def fail_in_folder():
        with new_folder(tmp_path / "it") as folder:
            write(folder, NEW)
            raise failure

    def fail_in_file():
        with new_file(tmp_path / "file") as path:
            path.write_bytes(b"new")
            raise failure

    for fail in (fail_in_folder, fail_in_file):
        with pytest.raises(failure):
            fail()
    assert read(tmp_path / "it") == OLD
    assert (tmp_path / "file").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "it"]


@pytest.mark.parametrize("has_power", [True, False])
@pytest.mark.parametrize("before", [None, OLD])
def test_a_crash_at_any_step_leaves_a_whole_folder_or_none(tmp_path, before, has_power):
    def reset():
        shutil.rmtree(tmp_path / "home", ignore_errors=True)
        (tmp_path / "home").mkdir()
        if before is not None:
            with new_folder(tmp_path / "home/it") as folder:
                write(folder, before)

    def work():
        with new_folder(tmp_path / "home/it") as folder:
            write(folder, NEW)

    found = []

    def check():
        found.append(read(tmp_path / "home/it"))
        work()
        assert read(tmp_path / "home/it") == NEW
        assert [path.name for path in (tmp_path / "home").iterdir()] == ["it"]
        reset()

    reset()
    assert crash_at_every_step(tmp_path / "home", work, check, has_power=has_power) >= 5
    assert all(one in (before, NEW, None) for one in found)
    assert (found[0], found[-1]) == (before, NEW)


@pytest.mark.parametrize("has_power", [True, False])
def test_a_crash_at_any_step_leaves_the_old_file_or_the_new_one(tmp_path, has_power):
    def work():
        with new_file(tmp_path / "file") as path:
            path.write_bytes(b"new content")

    found = []

    def check():
        found.append(path.read_bytes() if path.exists() else None)
        path.unlink(missing_ok=True)

    path = tmp_path / "file"
    assert crash_at_every_step(tmp_path, work, check, has_power=has_power) == 4
    assert set(found) == {None, b"new content"}


def test_what_a_killed_process_left_long_ago_is_removed(tmp_path):
    old, recent = tmp_path / ".file.1.partial", tmp_path / ".file.2.partial"
    for path in (old, recent):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 2 * durable._ABANDONED_S,) * 2)
    with new_file(tmp_path / "file") as path:
        path.write_bytes(b"whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".file.2.partial", "file"]


def test_the_old_folder_goes_when_the_new_names_are_on_the_disk(tmp_path, monkeypatch):
    with new_folder(tmp_path / "it") as folder:
        write(folder, OLD)
    forced = []
    monkeypatch.setattr(durable, "_force", lambda path: forced.append((path.name, (tmp_path / ".it.old").exists())))
    with new_folder(tmp_path / "it") as folder:
        write(folder, {"a": b""})
    assert forced == [("a", False), (".it.partial", False), (tmp_path.name, True)]


def test_a_lock_is_waited_for(tmp_path):
    told, taken = threading.Event(), []

    def wait():
        with locked(tmp_path / "it", told.set):
            taken.append(True)

    with FileLock(tmp_path / ".it.lock"):
        waiting = threading.Thread(target=wait)
        waiting.start()
        assert told.wait(20)
        assert taken == []
    waiting.join(20)
    assert taken == [True]


def test_a_sample_covers_the_beginning_the_end_and_what_lies_between(tmp_path, monkeypatch):
    monkeypatch.setattr(durable, "_SMALL_BYTES", 1000)
    monkeypatch.setattr(durable, "_HEAD_BYTES", 100)
    monkeypatch.setattr(durable, "_NUM_BLOCKS", 4)
    file = tmp_path / "file"
    size = 10 * durable._BLOCK_BYTES
    file.write_bytes(bytes(size))
    found = {sample(file)}
    for place in (0, 99, size - 1, size // 2 - 1):
        file.write_bytes(bytes(place) + b"x" + bytes(size - place - 1))
        found.add(sample(file))
    assert len(found) == 5
    assert facts(file)["size"] == size
