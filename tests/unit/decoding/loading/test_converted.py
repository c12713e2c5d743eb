import json
import os
import shutil
import threading
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from support.crashes import crash_at_every_step
from support.gguf_files import write_gguf
from support.waiting import PATIENCE_S

from superdraft.decoding.durable import facts
from superdraft.decoding.errors import BrokenModelError
from superdraft.decoding.loading import converted
from superdraft.decoding.loading.converted import MAX_ENTRIES, ConvertedFiles
from superdraft.decoding.loading.loader import ModelOptions, load_gguf, load_model

IDS = torch.tensor([[5, 17, 100, 33, 208, 64]])


@pytest.fixture
def home(tmp_path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def path(tmp_path) -> Path:
    return write_gguf(tmp_path / "tiny.gguf")


def entries(home: Path) -> list[Path]:
    return sorted(folder for folder in (home / "converted").iterdir() if not folder.name.startswith("."))


def logits(path: Path, home: Path, dtype: str = "float32") -> torch.Tensor:
    model = load_model(ModelOptions(model=str(path), home=home, device="cpu", dtype=dtype)).model
    with torch.inference_mode():
        return model(IDS).logits


def replaced(path: Path) -> None:
    """Put another model of the same size in place of a file."""
    data = bytearray(path.read_bytes())
    place, block = len(data) * 2 // 3, 34  # of Q8_0: a scale and 32 weights
    data[place : place + 50 * block] = data[place + block : place + 51 * block]
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_second_start_reads_the_entry_and_gives_the_same_logits(path, home, dtype, capfd):
    without = logits(path, path, dtype)  # the home folder is a file, so nothing is kept
    first = logits(path, home, dtype)
    capfd.readouterr()
    second = logits(path, home, dtype)
    assert capfd.readouterr().err == ""
    assert torch.equal(without, first)
    assert torch.equal(first, second)
    (entry,) = entries(home)
    assert entry.name.startswith(f"tiny-{dtype}-")


def test_the_tokenizer_of_an_entry_is_that_of_the_file(path, home):
    first, second = (load_model(ModelOptions(model=str(path), home=home, device="cpu")).tokenizer for _ in range(2))
    assert type(first) is type(second)
    assert json.loads(first.backend_tokenizer.to_str()) == json.loads(second.backend_tokenizer.to_str())
    names = ("bos_token", "eos_token", "unk_token", "pad_token", "clean_up_tokenization_spaces", "chat_template")
    assert [getattr(first, name) for name in names] == [getattr(second, name) for name in names]


def test_the_entry_knows_what_ends_a_text(path, home):
    for _ in range(2):
        assert load_model(
            ModelOptions(model=str(path), home=home, device="cpu")
        ).model.generation_config.eos_token_id == [300, 0]


def test_every_weight_type_has_its_own_entry(path, home):
    for dtype in ("float32", "bfloat16"):
        logits(path, home, dtype)
    assert [entry.name.split("-")[1] for entry in entries(home)] == ["bfloat16", "float32"]


@pytest.mark.parametrize("keeps_time", [False, True])
def test_a_file_replaced_in_place_is_expanded_again(path, home, keeps_time):
    before, facts = logits(path, home), path.stat()
    replaced(path)
    if keeps_time:
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert path.stat().st_size == facts.st_size
    after = logits(path, home)
    assert not torch.equal(before, after)
    assert torch.equal(after, logits(path, path))


def _truncate(entry: Path) -> None:
    weights = next(entry.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-5])


def _overwrite(entry: Path) -> None:
    weights = next(entry.glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-5000:] = bytes(5000)
    weights.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        _truncate,
        _overwrite,
        lambda entry: (entry / "tokenizer.json").write_text("{"),
        lambda entry: (entry / "config.json").unlink(),
        lambda entry: (entry / "superdraft.json").write_text("[]"),
        lambda entry: (entry / "superdraft.json").write_text("[" * 100_000),
        lambda entry: (entry / "superdraft.json").unlink(),
    ],
)
def test_a_damaged_entry_is_prepared_again(path, home, damage, capfd):
    before = logits(path, home)
    (entry,) = entries(home)
    damage(entry)
    capfd.readouterr()
    assert torch.equal(logits(path, home), before)
    assert "expanding" in capfd.readouterr().err
    assert torch.equal(logits(path, home), before)
    assert capfd.readouterr().err == ""


def test_weights_that_cannot_be_read_say_what_to_remove(path, home):
    logits(path, home)
    (entry,) = entries(home)
    weights = next(entry.glob("*.safetensors"))
    weights.write_bytes(b"\xff" * weights.stat().st_size)
    marker = entry / "superdraft.json"
    files = {name: facts(entry / name) for name in json.loads(marker.read_text())}
    marker.write_text(json.dumps(files))  # so that only reading tells
    with pytest.raises(BrokenModelError, match=f"cannot load the weights .*If {entry} is damaged, remove it"):
        logits(path, home)


def _kept_nothing(home: Path) -> bool:
    return not [file for file in (home / "converted").iterdir() if file.suffix != ".lock"]


def test_without_space_it_is_served_without_an_entry(path, home, monkeypatch, capfd):
    usage = type("Usage", (), {"free": 100_000_000})
    monkeypatch.setattr(converted.shutil, "disk_usage", lambda _: usage)
    assert torch.equal(logits(path, home), logits(path, path))
    said = f"The expanded weights of tiny.gguf are not kept in {home / 'converted'}: 200 MB are needed and 100 MB free."
    assert said in capfd.readouterr().err.splitlines()
    assert _kept_nothing(home)


def test_a_home_that_cannot_be_written_is_one_line(path, capfd):
    logits(path, path)
    first, second = capfd.readouterr().err.splitlines()
    assert first.startswith("Reading tiny.gguf")
    assert second.startswith("The expanded weights of tiny.gguf are not kept in ")


def test_a_failed_write_leaves_nothing_behind(path, home):
    def convert(gguf: Path, folder: Path, dtype: torch.dtype) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError("No space left on device")

    assert ConvertedFiles(home / "converted", convert=convert).ensure(path, torch.float32) is None
    assert _kept_nothing(home)


def test_a_file_replaced_while_it_is_read_is_not_kept(path, home, capfd):
    def convert(gguf: Path, folder: Path, dtype: torch.dtype) -> None:
        (folder / "model.safetensors").write_bytes(b"of the file before")
        replaced(gguf)

    assert ConvertedFiles(home / "converted", convert=convert).ensure(path, torch.float32) is None
    assert "replaced" in capfd.readouterr().err
    assert _kept_nothing(home)


def _quick(gguf: Path, folder: Path, dtype: torch.dtype) -> None:
    (folder / "model.safetensors").write_bytes(b"weights")


def test_the_entries_used_last_are_kept(tmp_path, home):
    files = [write_gguf(tmp_path / f"{number}.gguf", pre=f"kind-{number}") for number in range(MAX_ENTRIES + 1)]
    cache = ConvertedFiles(home / "converted", convert=_quick)
    for number, file in enumerate(files[:-1]):
        os.utime(cache.ensure(file, torch.float32) / "superdraft.json", (number, number))
    assert cache.find(files[0], torch.float32) is not None  # the oldest until now
    cache.ensure(files[-1], torch.float32)
    assert [cache.find(file, torch.float32) is not None for file in files] == [True, False, *[True] * (MAX_ENTRIES - 1)]


def test_a_process_waits_for_another_one_and_uses_its_entry(path, home, capfd):
    cache = ConvertedFiles(home / "converted", convert=_quick)
    entry = cache.ensure(path, torch.float32)
    entry.rename(home / "later")
    prepared = []
    with FileLock(home / "converted" / f".{entry.name}.lock"):

        def wait() -> None:
            prepared.append(ConvertedFiles(home / "converted", convert=None).ensure(path, torch.float32))

        waiting = threading.Thread(target=wait)
        waiting.start()
        waiting.join(timeout=0.5)
        assert waiting.is_alive()
        (home / "later").rename(entry)
    waiting.join(PATIENCE_S)
    assert prepared == [entry]
    assert "waiting for it" in capfd.readouterr().err


def test_other_models_are_not_kept(home, tmp_path):
    from support.models import tiny_model_folder

    load_model(ModelOptions(model=str(tiny_model_folder(tmp_path, "llama")), home=home, device="cpu"))
    assert not (home / "converted").exists()


def test_llama_cpp_s_runner_keeps_the_tokenizer_alone(path, home, monkeypatch):
    first = load_gguf(ModelOptions(model=str(path), home=home)).tokenizer
    (entry,) = entries(home)
    assert entry.name.startswith("tiny-tokenizer-")
    assert not list(entry.glob("*.safetensors"))
    with monkeypatch.context() as patched:
        patched.setattr("superdraft.decoding.loading.gguf_tokenizer.load_gguf_tokenizer", None)
        second = load_gguf(ModelOptions(model=str(path), home=home)).tokenizer
    text = "def f(x):\n    return 12 + x  # naïve"
    assert first.encode(text) == second.encode(text)
    (entry / "tokenizer.json").write_text("{}")  # is prepared again
    assert load_gguf(ModelOptions(model=str(path), home=home)).tokenizer.encode(text) == first.encode(text)
    assert load_gguf(ModelOptions(model=str(path), home=path)).tokenizer.encode(text) == first.encode(
        text
    )  # a file: nothing is kept


@pytest.mark.parametrize("has_power", [True, False])
def test_a_crash_at_any_step_of_an_expansion_leaves_a_whole_entry_or_none(path, home, has_power):
    def convert(gguf: Path, folder: Path, dtype: torch.dtype) -> None:
        for name in ("model-1.safetensors", "model-2.safetensors", "config.json"):
            (folder / name).write_bytes(name.encode() * 1000)

    cache = ConvertedFiles(home / "converted", convert=convert)

    def is_whole(entry: Path) -> bool:
        return all(
            (entry / name).read_bytes() == name.encode() * 1000
            for name in ("model-1.safetensors", "model-2.safetensors", "config.json")
        )

    def check() -> None:
        found = cache.find(path, torch.float32)
        assert found is None or is_whole(found)
        assert is_whole(cache.ensure(path, torch.float32))
        shutil.rmtree(home / "converted")

    home.mkdir()
    work = lambda: cache.ensure(path, torch.float32)  # noqa: E731
    assert crash_at_every_step(home, work, check, has_power=has_power) >= 8
