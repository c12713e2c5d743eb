"""Settings: flags over environment over file over defaults, `config show`, and errors in one line."""

import os
import re
import textwrap
import tomllib
from pathlib import Path

import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from superdraft.server import settings_sources
from superdraft.server.cli import config as cli_config
from superdraft.server.errors import SettingsError
from superdraft.server.settings import Settings, Several
from superdraft.server.settings_sources import Origin, is_secret, load_settings, settings_and_origins, shown_bytes

OPERATING = Path(__file__).parents[3] / "docs/operating.md"


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
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


@pytest.mark.parametrize("variable", ["SUPERDRAFT_SERVICE_HOST", "SUPERDRAFT_PORT_80_TCP", "SUPERDRAFT_API_PORT"])
def test_variable_that_kubernetes_sets_for_a_service_is_explained(monkeypatch, variable):
    monkeypatch.setenv(variable, "tcp://10.96.0.9:80")
    with pytest.raises(SettingsError) as elsewhere:
        load_settings()
    assert "Kubernetes" not in str(elsewhere.value)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    with pytest.raises(SettingsError, match=rf"{variable} is not a setting.*set enableServiceLinks: false"):
        load_settings()


def test_misspelt_variable_in_a_pod_is_not_blamed_on_kubernetes(monkeypatch):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    monkeypatch.setenv("SUPERDRAFT_NUM_SLOT", "7")
    with pytest.raises(SettingsError, match=r"did you mean SUPERDRAFT_NUM_SLOTS\?$"):
        load_settings()


def test_home_is_a_setting(monkeypatch, tmp_path):
    monkeypatch.setenv("SUPERDRAFT_HOME", str(tmp_path))
    assert load_settings().home == tmp_path


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"port": 99999}, "--port should be less than or equal to 65535, got 99999"),
        ({"prompt_too_long": "cut"}, "--prompt-too-long should be 'error' or 'truncate_left', got 'cut'"),
        ({"min_probability_shown": 2}, "--min-probability-shown"),
        ({"kv_memory": "lots"}, "--kv-memory must be a size such as 512MiB or 4GiB, got 'lots'"),
        ({"kv_memory": "2zb"}, "--kv-memory must be a size such as 512MiB or 4GiB, got '2zb'"),
        ({"rate_limit": "fast"}, "--rate-limit must be a number of requests per time"),
    ],
)
def test_wrong_flag_is_named(flags, message):
    with pytest.raises(SettingsError) as caught:
        load_settings(flags)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "text", ["drafts.example, b.example,", '["drafts.example", "b.example"]', "drafts.example,b.example"]
)
def test_lists_in_the_environment_are_separated_by_commas_or_json(monkeypatch, text):
    monkeypatch.setenv("SUPERDRAFT_ALLOWED_HOSTS", text)
    assert load_settings().allowed_hosts == ("drafts.example", "b.example")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10.0.0.0/8,proxy", r"^SUPERDRAFT_PROXY_NETWORKS must be an IP address or a network"),
        ("[1", r"^SUPERDRAFT_PROXY_NETWORKS must be values separated by commas, or a JSON list"),
    ],
)
def test_wrong_lists_in_the_environment_are_errors(monkeypatch, text, message):
    monkeypatch.setenv("SUPERDRAFT_PROXY_NETWORKS", text)
    with pytest.raises(SettingsError, match=message):
        load_settings()


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
    assert (config.kv_memory_bytes, config.num_slots, config.max_prefill_tokens) == (4 * 1024**3, None, 256)
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


@pytest.fixture
def write(tmp_path):
    def write(text):
        file = tmp_path / "superdraft.toml"
        file.write_text(text)
        return file

    return write


def test_flags_win_over_environment_over_file_over_default(monkeypatch, write):
    file = write('port = 1\nnum_slots = 1\nmodel = "in-file"\nkv_memory = "1GiB"\n')
    monkeypatch.setenv("SUPERDRAFT_PORT", "2")
    monkeypatch.setenv("SUPERDRAFT_NUM_SLOTS", "2")
    loaded, origins = settings_and_origins({"config": file, "port": 3, "host": None})
    assert (loaded.port, loaded.num_slots, loaded.model, loaded.host) == (3, 2, "in-file", "127.0.0.1")
    assert loaded.kv_memory == 2**30
    assert origins == {
        "port": Origin("flag", "--port"),
        "num_slots": Origin("environment", "SUPERDRAFT_NUM_SLOTS"),
        "model": Origin("file", str(file)),
        "kv_memory": Origin("file", str(file)),
    }


def test_file_is_named_by_flag_or_environment(monkeypatch, write, tmp_path):
    monkeypatch.setenv("SUPERDRAFT_CONFIG", str(write("port = 1")))
    assert load_settings().port == 1
    other = tmp_path / "other.toml"
    other.write_text("port = 2")
    assert load_settings({"config": other}).port == 2
    monkeypatch.delenv("SUPERDRAFT_CONFIG")
    monkeypatch.chdir(tmp_path)  # where a superdraft.toml lies, which nobody named
    assert load_settings().port == 8000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot = 1", r"^prot in .*superdraft\.toml is not a setting; did you mean port\?$"),
        ("max-num-drafts = 1", r"^max-num-drafts in .* did you mean max_num_drafts\?$"),
        ("[server]\nport = 1", r"^server in .* is not a setting"),
        ("port = 99999", r"^port in .*superdraft\.toml should be less than or equal to 65535, got 99999$"),
        ('log_format = "xml"', r"^log_format in .*'console' or 'json'"),
        ("a = " + "[" * 100_000, r"superdraft\.toml is not valid TOML: maximum recursion depth"),
        ('proxy_networks = ["proxy"]', r"must be an IP address or a network"),
        ("port = 1 2", r"superdraft\.toml is not valid TOML: .*line 1"),
    ],
)
def test_wrong_file_is_an_error_that_names_it(write, text, message):
    with pytest.raises(SettingsError, match=message):
        load_settings({"config": write(text)})


def test_file_that_is_not_there_or_not_text_is_an_error(tmp_path):
    with pytest.raises(SettingsError, match=r"none\.toml cannot be read: No such file"):
        load_settings({"config": tmp_path / "none.toml"})
    (tmp_path / "bytes").write_bytes(b"\xff")
    with pytest.raises(SettingsError, match="not valid TOML"):
        load_settings({"config": tmp_path / "bytes"})


def shown(*arguments):
    result = CliRunner().invoke(cli_config.app, ["show", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_config_show_tells_values_and_origins(monkeypatch, write):
    monkeypatch.setenv("SUPERDRAFT_LOG_FORMAT", "json")
    file = write("num_slots = 4\nport = 1")
    lines = {re.match(r"(?:# )?(\w+)", line)[1]: line for line in shown("--config", file, "--port", 7).splitlines()}
    assert set(lines) == set(Settings.model_fields)
    assert re.fullmatch(r"port = 7 +# flag --port", lines["port"])
    assert re.fullmatch(r'log_format = "json" +# environment SUPERDRAFT_LOG_FORMAT', lines["log_format"])
    assert re.fullmatch(rf"num_slots = 4 +# file {re.escape(str(file))}", lines["num_slots"])
    assert re.fullmatch(r'host = "127.0.0.1" +# default', lines["host"])
    assert re.fullmatch(r"# home is not set +# default", lines["home"])
    assert re.fullmatch(r'kv_memory = "4GiB" +# default', lines["kv_memory"])
    assert re.fullmatch(r'max_body_bytes = "512KiB" +# default', lines["max_body_bytes"])


@pytest.mark.parametrize("size", [1, 1023, 1024, 1500, 10**9, 3 * 2**20, 2**40, 5 * 2**41])
def test_sizes_are_shown_exactly(size):
    assert load_settings({"kv_memory": shown_bytes(size)}).kv_memory == size


def test_what_config_show_prints_is_a_configuration_file(write):
    flags = {
        "port": 7,
        "trust_remote_code": True,
        "min_probability_shown": 0.5,
        "kv_memory": "3GiB",
        "served_model_name": 'a "ü"',
    }
    printed = shown(
        *(
            f"--{name.replace('_', '-')}" if v is True else f"--{name.replace('_', '-')}={v}"
            for name, v in flags.items()
        )
    )
    assert tomllib.loads(printed)["served_model_name"] == 'a "ü"'
    assert load_settings({"config": write(printed)}) == load_settings(flags)


def test_secrets_are_masked(monkeypatch):
    class WithSecrets(Settings):
        api_key: SecretStr | None = None
        api_keys: Several[SecretStr] = ()

    for module in (settings_sources, cli_config):
        monkeypatch.setattr(module, "Settings", WithSecrets)
    monkeypatch.setenv("SUPERDRAFT_API_KEY", "hush")
    monkeypatch.setenv("SUPERDRAFT_API_KEYS", '["hush", "hush"]')
    output = shown()
    assert "hush" not in output
    assert re.search(r"# api_key is set, and secret +# environment SUPERDRAFT_API_KEY\n", output)
    assert load_settings().api_keys[1].get_secret_value() == "hush"
    for wrong in ('[["hush"]]', '[{"hush": 1}]', '["hush'):
        monkeypatch.setenv("SUPERDRAFT_API_KEYS", wrong)
        with pytest.raises(SettingsError, match=r"(?i)api_keys") as caught:
            load_settings()
        assert "hush" not in str(caught.value)
    assert not is_secret(Settings.model_fields["home"].annotation)


def test_documented_example_is_a_configuration_file(write):
    (example,) = re.findall(r"^    # superdraft\.toml\n(?:    .*\n)+", OPERATING.read_text(), re.M)
    loaded = load_settings({"config": write(textwrap.dedent(example))})
    assert (loaded.port, loaded.kv_memory, loaded.num_slots, loaded.log_format) == (8080, 2**32, 32, "json")
