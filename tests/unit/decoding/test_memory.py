"""What the system says is free, and the refusal of what does not fit."""

import resource

import pytest

from superdraft.decoding import memory
from superdraft.decoding.errors import ModelLoadError, NotEnoughMemoryError

GB = 10**9


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Tables of a system with 8 GB free, in which this process belongs to the group /a/b."""
    for name in ("MEMORY_TABLE", "OWN_GROUP"):
        monkeypatch.setattr(memory, name, tmp_path / name)
    monkeypatch.setattr(memory, "CONTROL_GROUPS", tmp_path / "groups")
    (tmp_path / "MEMORY_TABLE").write_text(f"MemTotal: 99 kB\nMemAvailable:  {8 * GB // 1024} kB\n")
    (tmp_path / "OWN_GROUP").write_text("0::/a/b\n")
    (tmp_path / "groups/a/b").mkdir(parents=True)
    return tmp_path


def limit(folder, most: object, used: int, files: int = 0) -> None:
    (folder / "memory.max").write_text(f"{most}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {files}\nactive_file 0\n")


def test_without_a_group_the_machine_counts(system):
    assert memory.free_bytes() == 8 * GB // 1024 * 1024


@pytest.mark.parametrize("group", ["groups", "groups/a", "groups/a/b"])
def test_the_tightest_group_counts_and_pages_of_files_are_free(system, group):
    limit(system / group, 3 * GB, 2 * GB, files=GB // 2)
    assert memory.free_bytes() == 3 * GB // 2


def test_groups_of_version_1(system):
    (system / "OWN_GROUP").write_text("12:cpu,memory:/docker/5f\n3:pids:/x\n0::/\n")
    group = system / "groups/memory"  # in a container, the group's own path is not there
    group.mkdir()
    (group / "memory.limit_in_bytes").write_text(f"{2 * GB}\n")
    (group / "memory.usage_in_bytes").write_text(f"{GB}\n")
    (group / "memory.stat").write_text("inactive_file 9\ntotal_inactive_file 500\ntotal_active_file 70\n")
    assert memory.free_bytes() == GB + 570


def test_a_group_without_a_limit_counts_nothing(system):
    limit(system / "groups/a", "max", 99 * GB)
    assert memory.free_bytes() == 8 * GB // 1024 * 1024


def test_a_group_that_has_used_more_than_its_limit_leaves_nothing(system):
    limit(system / "groups/a/b", GB, 2 * GB)
    assert memory.free_bytes() == 0


def test_what_fits_is_not_refused(system):
    memory.require_memory(8 * GB // 1024 * 1024, "x", "")
    with pytest.raises(NotEnoughMemoryError):
        memory.require_memory(8 * GB + 1, "x", "")


def test_a_system_that_tells_nothing_refuses_nothing(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda: None)
    memory.require_memory(10**18, "x", "")


def test_the_refusal_says_what_is_needed_what_is_free_and_what_to_do():
    with pytest.raises(ModelLoadError) as caught:
        memory.require_memory(5 * GB, "loading 'big'", "Take another one.", free=850_000_000)
    assert str(caught.value) == (
        "loading 'big' needs about 5.0 GB of memory, and 850 MB are free. Take another one. If the estimate is wrong "
        "for this machine: --no-memory-check."
    )


def test_memory_of_this_process_leaves_the_pages_of_files_out(tmp_path, monkeypatch):
    table = tmp_path / "status"
    table.write_text("Name:\tpython\nVmRSS:\t    9000 kB\nRssAnon:\t    7000 kB\nRssFile:\t    2000 kB\n")
    monkeypatch.setattr(memory, "_OWN_TABLE", table)
    assert memory.resident_bytes() == 7000 * 1024
    monkeypatch.setattr(memory, "_OWN_TABLE", tmp_path / "none")
    assert memory.resident_bytes() is None


def test_memory_of_this_process_is_told_in_bytes():
    now = memory.resident_bytes()
    if now is None:
        pytest.skip("this system has no /proc/self/status")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert 20_000_000 < now < 2 * peak  # torch has more, and the counters differ by a few pages
