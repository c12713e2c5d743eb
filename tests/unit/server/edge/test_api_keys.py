"""API keys: made, found, rotated, and never lost to a damaged file; limits go by caller."""

import asyncio
import errno
import os
import stat
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from support.waiting import PATIENCE_S
from typer.testing import CliRunner

from superdraft.server.cli import keys as cli_keys
from superdraft.server.edge.api_keys import PREFIX, ApiKeys, add_key, digest_of, read_keys
from superdraft.server.edge.rate_limits import CallerLimits, network_of
from superdraft.server.edge.refusals import TooManyRequestsError
from superdraft.server.errors import CommandError, SettingsError


class Clock:
    now_s = 0.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def file(tmp_path):
    return tmp_path / "keys.toml"


def test_a_key_is_shown_once_and_only_its_digest_is_kept(file):
    key = add_key(file, "laptop", ["complete", "metrics"])
    assert key.startswith(PREFIX)
    assert len(key) == len(PREFIX) + 43  # 256 bits in base64
    assert key not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert tomllib.loads(file.read_text())["key"] == [
        {"name": "laptop", "sha256": digest_of(key), "scopes": ["complete", "metrics"]}
    ]
    assert add_key(file, "phone", ["complete"]) != key
    assert [known.name for known in read_keys(file)] == ["laptop", "phone"]


@pytest.mark.parametrize("last_line_end", ["", "\n", "\r\n"])
def test_a_key_is_added_whatever_the_file_ends_with(file, last_line_end):
    add_key(file, "laptop", ["complete"])
    before = file.read_bytes().rstrip() + last_line_end.encode()
    file.write_bytes(before)
    file.chmod(0o640)
    key = add_key(file, "phone", ["complete"])
    assert ApiKeys(file=file).find(key).name == "phone"
    assert file.read_bytes().startswith(before)
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert [path for path in file.parent.iterdir() if path.suffix != ".lock"] == [file]


@pytest.mark.parametrize("text", ["key = []", "key = [", "x = " + "[" * 100_000])
def test_a_file_that_cannot_take_a_key_stays_as_it_is(file, text):
    file.write_text(text)
    with pytest.raises(SettingsError, match=r"keys\.toml"):
        add_key(file, "phone", ["complete"])
    assert file.read_text() == text


def test_a_failed_write_leaves_the_old_file(file, monkeypatch):
    key = add_key(file, "laptop", ["complete"])

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(SettingsError, match="No space left"):
        add_key(file, "phone", ["complete"])
    assert ApiKeys(file=file).find(key)
    assert [path for path in file.parent.iterdir() if path.suffix != ".lock"] == [file]


def test_a_link_to_the_file_stays_a_link(file, tmp_path):
    link = tmp_path / "link.toml"
    link.symlink_to(file)
    key = add_key(link, "laptop", ["complete"])
    assert link.is_symlink()
    assert ApiKeys(file=file).find(key)


ADD = """
import sys
from pathlib import Path
from superdraft.server.edge.api_keys import add_key

for number in range(10):
    add_key(Path(sys.argv[1]), f"{sys.argv[2]}-{number}", ["complete"])
"""


def test_keys_made_at_the_same_time_are_all_in_the_file(file):
    commands = [subprocess.Popen([sys.executable, "-c", ADD, str(file), name]) for name in ("a", "b")]
    assert [command.wait(PATIENCE_S) for command in commands] == [0, 0]
    assert len(read_keys(file)) == 20


def test_only_the_very_key_is_found_and_only_its_scopes_are_allowed(file):
    metrics, admin = add_key(file, "m", ["metrics"]), add_key(file, "a", ["admin"])
    keys = ApiKeys(file=file)
    assert keys.are_required
    for wrong in ("", "x", metrics[:-1], metrics + "x", metrics.upper(), digest_of(metrics), "\udcff"):
        assert keys.find(wrong) is None
    found = keys.find(metrics)
    assert (found.name, found.allows("metrics"), found.allows("complete")) == ("m", True, False)
    assert all(keys.find(admin).allows(scope) for scope in ("complete", "metrics", "admin"))


def test_keys_are_rotated_without_a_restart(file):
    clock = Clock()
    old = add_key(file, "old", ["complete"])
    keys = ApiKeys(file=file, clock=clock)
    new = add_key(file, "new", ["complete"])
    assert keys.find(new) is None  # looked at less than a second ago
    clock.now_s = 1.1
    assert keys.find(new).name == "new"
    file.write_text(file.read_text().partition("\n\n")[2])  # without the first table
    long_ago(file)
    clock.now_s = 2.2
    assert keys.find(old) is None
    assert keys.find(new)


def long_ago(file):
    """The file counts as complete, since nobody has written to it for an hour."""
    hour_ago_s = time.time() - 3600
    os.utime(file, (hour_ago_s, hour_ago_s))


@pytest.mark.parametrize(
    ("num_lines", "event"),
    [(0, "api_keys_missing"), (3, "api_keys_not_reloaded"), (5, "api_keys_missing"), (9, "api_keys_missing")],
    ids=["nothing", "half a key", "one key", "all but a limit"],
)
def test_a_file_rewritten_in_place_loses_nothing(file, num_lines, event):
    clock = Clock()
    secrets = [add_key(file, name, ["complete"]) for name in ("a", "b")]
    lines = file.read_text().replace("\n\n", "\nrate_limit = '9/minute'\n").splitlines(keepends=True)
    assert len(lines) == 10
    file.write_text("".join(lines))
    keys = ApiKeys(file=file, clock=clock)
    with capture_logs() as logs:
        for _ in range(3):  # every other check sees the file while it is being written
            for part in (lines[:num_lines], lines):
                file.write_text("".join(part))
                clock.now_s += 1.1
                assert [keys.find(secret).rate_limit for secret in secrets] == ["9/minute"] * 2
    assert [log["event"] for log in logs] == [event, "api_keys_reloaded"] * 3


def test_an_emptied_file_revokes_every_key_when_it_stays_empty(file):
    clock = Clock()
    key = add_key(file, "a", ["complete"])
    keys = ApiKeys(file=file, clock=clock)
    file.write_text("")
    with capture_logs() as logs:
        for clock.now_s in (1.1, 2.2):
            assert keys.find(key)
        clock.now_s = 3.3
        assert keys.find(key) is None
    assert [log["event"] for log in logs] == ["api_keys_missing", "api_keys_reloaded"]
    assert keys.are_required


def test_a_revoked_key_is_refused_at_once_by_a_server_that_nobody_has_asked_for_a_while(file):
    clock = Clock()
    for moved_s in (-3600, 3600):  # by a clock that is wrong, too
        key = add_key(file, f"a{moved_s}", ["complete"])
        keys = ApiKeys(file=file, clock=clock)
        file.write_text("")
        os.utime(file, (time.time() + moved_s,) * 2)
        clock.now_s += 100
        assert keys.find(key) is None


def test_a_file_that_is_written_all_the_time_does_not_keep_a_revoked_key_alive(file):
    clock = Clock()
    gone, stays = add_key(file, "gone", ["complete"]), add_key(file, "stays", ["complete"])
    keys = ApiKeys(file=file, clock=clock)
    text = file.read_text().partition("\n\n")[2]
    found = []
    for turn in range(5):
        file.write_text(f"{text}# {turn}\n")
        clock.now_s += 1.1
        found.append(keys.find(gone) is not None)
        assert keys.find(stays)
    assert found == [True, True, False, False, False]


def test_a_file_that_could_not_be_read_is_tried_again_though_it_is_the_same(file, monkeypatch):
    clock = Clock()
    key = add_key(file, "a", ["complete"])
    keys = ApiKeys(file=file, clock=clock)
    added = add_key(file, "b", ["complete"])

    def denied(_):
        raise PermissionError(errno.EACCES, "Permission denied")

    with capture_logs() as logs:
        with monkeypatch.context() as patched:
            patched.setattr(Path, "read_bytes", denied)
            for clock.now_s in (1.1, 2.2, 3.3):
                assert keys.find(key)
                assert keys.find(added) is None
        clock.now_s = 4.4
        assert keys.find(added)
    assert [log["event"] for log in logs] == ["api_keys_not_reloaded", "api_keys_reloaded"]


@pytest.mark.parametrize("damage", ["[[key", '[[key]]\nname = "x"\n', None])
def test_a_damaged_file_leaves_the_keys_as_they_were(file, damage):
    clock = Clock()
    key = add_key(file, "a", ["complete"])
    keys = ApiKeys(file=file, clock=clock)
    if damage is None:
        file.unlink()
    else:
        file.write_text(damage)
    clock.now_s = 2
    assert keys.find(key)
    assert keys.find("anything else") is None
    clock.now_s = 4
    file.write_text("")  # but an empty one revokes them all
    long_ago(file)
    assert keys.find(key) is None
    assert keys.are_required


def test_keys_from_the_environment():
    keys = ApiKeys("laptop=a-long-enough-key-00, ci=another-long-key-0001")
    assert keys.find("a-long-enough-key-00").name == "laptop"
    assert keys.find("another-long-key-0001").allows("metrics")
    assert not ApiKeys().are_required


@pytest.mark.parametrize("given", ["x", "a=short", "=a-long-enough-key-00", "a b=a-long-enough-key-00", ""])
def test_keys_from_the_environment_that_are_none(given):
    with pytest.raises(SettingsError) as caught:
        ApiKeys(given)
    assert "long-enough" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no API key"),
        ("[[key", "not valid TOML"),
        ('[[key]]\nname = "a"\nsha256 = "00"\nscopes = ["complete"]', "key.0.sha256"),
        (f'[[key]]\nname = "a"\nsha256 = "{"0" * 64}"\nscopes = ["everything"]', "key.0.scopes"),
        (f'[[key]]\nname = "a"\nsha256 = "{"0" * 64}"\nscopes = []', "key.0.scopes"),
        (
            f'[[key]]\nname = "a"\nsha256 = "{"0" * 64}"\nscopes = ["complete"]\nrate_limit = "fast"',
            "requests per time",
        ),
        (f'[[key]]\nname = "a"\nsha256 = "{"0" * 64}"\nscopes = ["complete"]\n' * 2, "Two API keys are named a"),
        (f'[[kye]]\nname = "a"\nsha256 = "{"0" * 64}"\nscopes = ["complete"]', "kye"),
    ],
)
def test_a_server_does_not_start_with_a_wrong_file(file, text, message):
    file.write_text(text)
    with pytest.raises(SettingsError, match=message):
        ApiKeys(file=file)


def test_nor_without_the_file(file):
    with pytest.raises(SettingsError, match="cannot be read"):
        ApiKeys(file=file)


def test_command_prints_the_key_alone_on_stdout(file, monkeypatch):
    monkeypatch.setenv("SUPERDRAFT_API_KEYS_FILE", str(file))
    done = CliRunner().invoke(cli_keys.app, ["new", "--name", "ci", "--scopes", "complete, metrics"])
    assert done.exit_code == 0
    found = ApiKeys(file=file).find(done.stdout.strip())
    assert (found.name, found.scopes) == ("ci", {"complete", "metrics"})
    for args in (["--name", "ci"], ["--name", "a b"], ["--name", "x", "--scopes", "all"]):
        done = CliRunner().invoke(cli_keys.app, ["new", *args])
        assert isinstance(done.exception, CommandError)
    assert len(read_keys(file)) == 1


# Limits


def hits(limits, caller, count, **own):
    async def one():
        try:
            async with limits.counted(caller, **own):
                return 200
        except TooManyRequestsError as error:
            return error.code

    async def main():
        return [await one() for _ in range(count)]

    return asyncio.run(main())


def test_rate_limits_are_each_callers_own():
    limits, reasons = CallerLimits("3/minute", on_shed=lambda reason: reasons.append(reason)), []
    assert hits(limits, "a", 5) == [200, 200, 200, "rate_limit_exceeded", "rate_limit_exceeded"]
    assert hits(limits, "b", 1) == [200]
    assert hits(limits, "c", 6, rate_limit="5/minute") == [200] * 5 + ["rate_limit_exceeded"]
    assert reasons == ["rate_limit"] * 3


def test_concurrency_is_counted_down_however_a_request_ends():
    async def failing(limits):
        async with limits.counted("a"):
            with pytest.raises(TooManyRequestsError):
                await limits.counted("a").__aenter__()
            async with limits.counted("b"):
                raise KeyError

    async def main():
        limits = CallerLimits(max_concurrent=1)
        for _ in range(3):
            with pytest.raises(KeyError):
                await failing(limits)
        async with limits.counted("a", max_concurrent=2), limits.counted("a", max_concurrent=2):
            pass
        assert not limits._running  # a caller that is gone takes no memory

    asyncio.run(main())


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff:1", "2001:db8::/64"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("testclient", "testclient"),
        (None, "unknown"),
    ],
)
def test_a_client_without_a_key_is_its_address_or_network(address, network):
    assert network_of(address) == network
