from pathlib import Path

import gguf
import pytest
import torch
from support.gguf_files import write_gguf
from transformers import AutoConfig, GenerationConfig

from superdraft.decoding.errors import BrokenModelError
from superdraft.decoding.loading.gguf_conversion import convert_gguf
from superdraft.decoding.loading.loader import ModelOptions, load_model

TEXT = "Thank you for 12  3 naïve\n\n things , it 's"


@pytest.fixture
def converted(tmp_path) -> Path:
    write_gguf(tmp_path / "tiny.gguf")
    folder = tmp_path / "converted"
    folder.mkdir()
    convert_gguf(tmp_path / "tiny.gguf", folder)
    return folder


def test_the_converted_model_equals_the_gguf_file(converted, capfd):
    capfd.readouterr()
    from_gguf = load_model(ModelOptions(model=str(converted.parent / "tiny.gguf"), device="cpu"))
    loaded = load_model(ModelOptions(model=str(converted), device="cpu"))
    said = "Reading tiny.gguf (0 MB); expanding its weights may take minutes.\n"
    assert capfd.readouterr() == ("", said)
    assert (from_gguf.name, from_gguf.path) == ("tiny", converted.parent / "tiny.gguf")
    token_ids = loaded.tokenizer.encode(TEXT)
    assert token_ids == from_gguf.tokenizer.encode(TEXT)
    with torch.inference_mode():
        logits = [one.model(torch.tensor([token_ids])).logits for one in (loaded, from_gguf)]
    assert torch.equal(logits[0], logits[1])
    assert logits[0].std() > 0.1


def test_nothing_says_that_the_weights_were_quantised(converted):
    config = AutoConfig.from_pretrained(converted)
    assert not hasattr(config, "quantization_config")
    assert config.dtype == torch.float32
    assert "gguf" not in (converted / "config.json").read_text()


def test_both_the_end_of_a_turn_and_the_document_separator_end_a_text(converted):
    assert GenerationConfig.from_pretrained(converted).eos_token_id == [300, 0]


def test_text_survives_the_tokenizer_and_digits_stand_alone(converted):
    tokenizer = load_model(ModelOptions(model=str(converted), device="cpu")).tokenizer
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert tokenizer.clean_up_tokenization_spaces is False
    pieces = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("  3 12")
    assert [piece for piece, _ in pieces] == ["ĠĠ", "3", "Ġ", "1", "2"]


def test_other_vocabularies_keep_their_own_splitting(tmp_path):
    write_gguf(tmp_path / "tiny.gguf", pre="gpt-2")
    tokenizer = load_model(ModelOptions(model=str(tmp_path / "tiny.gguf"), device="cpu")).tokenizer
    pieces = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("  3 12")
    assert [piece for piece, _ in pieces] == ["Ġ", "Ġ3", "Ġ12"]


def test_the_header_is_parsed_once(tmp_path, monkeypatch):
    path, parsed = write_gguf(tmp_path / "tiny.gguf"), []

    class Reader(gguf.GGUFReader):
        def __init__(self, *args):
            parsed.append(args)
            super().__init__(*args)

    monkeypatch.setattr(gguf, "GGUFReader", Reader)
    load_model(ModelOptions(model=str(path), home=tmp_path / "home", device="cpu"))
    assert len(parsed) == 1
    load_model(ModelOptions(model=str(path), home=tmp_path / "home", device="cpu"))
    assert len(parsed) == 1
    assert gguf.GGUFReader is Reader


def test_missing_weights_are_not_made_up(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf")
    path.write_bytes(path.read_bytes().replace(b"blk.1.ffn_up.weight", b"blk.9.ffn_up.weight"))
    for home in (tmp_path / "home", path):  # with the cache, and without
        with pytest.raises(BrokenModelError, match=r"lacks 1 of its weights, for example .*layers\.1\.mlp\.up_proj"):
            load_model(ModelOptions(model=str(path), home=home, device="cpu"))
