"""Settings: flags over environment over defaults, and errors in one line."""

import pytest

from superdraft.server.errors import SettingsError
from superdraft.server.settings import load_settings


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    import os

    for name in list(os.environ):
        if name.startswith("SUPERDRAFT_"):
            monkeypatch.delenv(name)


def test_flags_win_over_the_environment_and_none_means_not_given(monkeypatch):
    monkeypatch.setenv("SUPERDRAFT_PORT", "9000")
    monkeypatch.setenv("SUPERDRAFT_NUM_SLOTS", "7")
    settings = load_settings({"port": 9001, "num_slots": None, "model": None})
    assert (settings.port, settings.num_slots, settings.model) == (9001, 7, "smollm2-135m")


def test_unknown_variable_names_the_closest(monkeypatch):
    monkeypatch.setenv("SUPERDRAFT_PROT", "9000")
    with pytest.raises(SettingsError, match=r"SUPERDRAFT_PROT.*SUPERDRAFT_PORT"):
        load_settings()


def test_home_is_a_setting(monkeypatch, tmp_path):
    monkeypatch.setenv("SUPERDRAFT_HOME", str(tmp_path))
    assert load_settings().home == tmp_path


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"port": 99999}, "--port should be less than or equal to 65535, got 99999"),
        ({"prompt_too_long": "cut"}, "--prompt-too-long should be 'error' or 'truncate_left', got 'cut'"),
        ({"default_alpha": 2}, "--default-alpha"),
    ],
)
def test_wrong_flag_is_named(flags, message):
    with pytest.raises(SettingsError) as caught:
        load_settings(flags)
    assert str(caught.value).startswith(message)


def test_wrong_variable_is_named(monkeypatch):
    monkeypatch.setenv("SUPERDRAFT_NUM_SLOTS", "many")
    with pytest.raises(SettingsError, match=r"^SUPERDRAFT_NUM_SLOTS .*'many'"):
        load_settings()


def test_engine_config_allows_k_squared_candidates():
    config = load_settings({"max_num_drafts": 40, "prompt_too_long": "truncate_left"}).engine_config()
    assert config.max_candidates_per_draft == 1600
    assert config.prompt_too_long == "truncate_left"


def test_memory_and_slots_reach_the_engine(monkeypatch):
    config = load_settings().engine_config()
    assert (config.kv_memory_bytes, config.num_slots, config.max_prefill_tokens) == (2 * 1024**3, None, 256)
    monkeypatch.setenv("SUPERDRAFT_KV_MEMORY", "1.5GiB")
    config = load_settings({"num_slots": 3, "max_prefill_tokens": 64}).engine_config()
    assert (config.kv_memory_bytes, config.num_slots, config.max_prefill_tokens) == (3 * 2**29, 3, 64)


@pytest.mark.parametrize(("text", "size"), [("512MB", 512 * 10**6), ("2GiB", 2**31), ("1000", 1000), (4096, 4096)])
def test_sizes_are_numbers_with_or_without_a_unit(text, size):
    assert load_settings({"kv_memory": text}).kv_memory == size


@pytest.mark.parametrize(
    "flags", [{"kv_memory": "lots"}, {"kv_memory": "0"}, {"num_slots": 0}, {"shutdown_grace_s": -1}]
)
def test_wrong_sizes_name_the_flag(flags):
    (name,) = flags
    with pytest.raises(SettingsError, match=f"^--{name.replace('_', '-')} "):
        load_settings(flags)
