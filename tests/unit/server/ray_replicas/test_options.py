import json

import pytest

from superdraft.decoding.model.kv_cache import MAX_DEFAULT_SLOTS
from superdraft.server.bridge.room import places_of
from superdraft.server.errors import SettingsError
from superdraft.server.ray_replicas.options import (
    check_ngram_models,
    deployment_options,
    ngram_digests,
    prepare_environment,
    replica_settings,
)
from superdraft.server.settings import Settings


def test_more_requests_reach_a_replica_than_it_lets_in():
    settings = Settings(num_slots=32, max_waiting=10)
    options = deployment_options(settings)
    assert options["max_ongoing_requests"] > places_of(32) + 10  # so that it is the replica that refuses
    assert options["max_queued_requests"] >= options["max_ongoing_requests"]  # or a burst would be refused by Ray


def test_without_a_number_of_slots_the_engines_largest_default_is_taken():
    assert deployment_options(Settings()) == deployment_options(Settings(num_slots=MAX_DEFAULT_SLOTS))


def test_replicas_and_draining_follow_the_settings():
    settings = Settings(ray_replicas=7, shutdown_grace_s=25, ray_replica_cpus=4, ray_replica_gpus=0.5)
    options = deployment_options(settings)
    assert options["num_replicas"] == 7
    assert deployment_options(Settings())["num_replicas"] == 1  # as `deploy/ray_app.py` may be started
    assert options["graceful_shutdown_timeout_s"] > 25
    assert options["ray_actor_options"] == {"num_cpus": 4, "num_gpus": 0.5}


def test_a_replica_finds_the_files_from_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-model").mkdir()
    (tmp_path / "my-model" / "config.json").touch()
    (tmp_path / "my-ngrams").mkdir()
    settings = Settings(home="here", api_keys_file="keys.toml", model="my-model", ngram_model="./my-ngrams")
    found = replica_settings(settings)
    assert (found.home, found.api_keys_file) == (tmp_path / "here", tmp_path / "keys.toml")
    assert (found.model, found.ngram_model) == (str(tmp_path / "my-model"), str(tmp_path / "my-ngrams"))


@pytest.mark.parametrize("ngram_model", ["auto", "none", "smollm2-135m"])
def test_a_folder_does_not_change_what_a_name_means(tmp_path, monkeypatch, ngram_model):
    monkeypatch.chdir(tmp_path)
    settings = Settings(ngram_model=ngram_model)
    for name in {settings.model, ngram_model}:
        (tmp_path / name).mkdir()
    found = replica_settings(settings)
    assert (found.model, found.ngram_model) == (settings.model, ngram_model)


def test_the_model_gets_the_cores_that_are_kept_for_it():
    assert replica_settings(Settings()).num_threads == 1
    assert replica_settings(Settings(ray_replica_cpus=6)).num_threads == 6
    assert replica_settings(Settings(ray_replica_cpus=0.5)).num_threads == 1
    assert replica_settings(Settings(ray_replica_cpus=6, num_threads=2)).num_threads == 2


def test_ray_reports_nothing_and_asks_for_a_token_that_changes():
    first, second = {}, {}
    prepare_environment(first)
    prepare_environment(second)
    assert first["RAY_USAGE_STATS_ENABLED"] == "0"
    assert first["RAY_AUTH_MODE"] == "token"
    assert len(first["RAY_AUTH_TOKEN"]) >= 32
    assert first["RAY_AUTH_TOKEN"] != second["RAY_AUTH_TOKEN"]


def test_who_has_decided_on_authentication_keeps_it():
    environment = {"RAY_AUTH_MODE": "disabled"}
    prepare_environment(environment)
    assert environment["RAY_AUTH_MODE"] == "disabled"
    assert "RAY_AUTH_TOKEN" not in environment


def test_the_proxies_are_told_of_functions_that_exist():
    import importlib

    from starlette.middleware import Middleware

    environment = {}
    prepare_environment(environment)
    module, _, name = environment["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"].rpartition(".")
    found = getattr(importlib.import_module(module), name)()
    assert found
    assert all(isinstance(item, Middleware) for item in found)


def test_a_replica_with_other_ngram_models_is_refused(tmp_path):
    shipped = ngram_digests(tmp_path)
    assert "smollm2-135m" in shipped
    own = tmp_path / "ngram" / "mine"
    own.mkdir(parents=True)
    (own / "manifest.json").write_text(json.dumps({"format": 1}))
    started_with = ngram_digests(tmp_path)
    assert set(started_with) == {*shipped, "mine"}
    check_ngram_models(started_with, ngram_digests(tmp_path))
    check_ngram_models(shipped, started_with)  # more do no harm

    (own / "manifest.json").write_text(json.dumps({"format": 2}))
    with pytest.raises(SettingsError, match=r"mine \(differs\)"):
        check_ngram_models(started_with, ngram_digests(tmp_path))
    with pytest.raises(SettingsError, match=r"mine \(missing\)"):
        check_ngram_models(started_with, shipped)
