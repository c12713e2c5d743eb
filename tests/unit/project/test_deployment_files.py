"""The files that deploy the server: their schemas, and that they agree with the app, its settings and one another."""

import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml
from prometheus_client import generate_latest
from starlette.testclient import TestClient
from support.engine import FakeEngine
from support.waiting import PATIENCE_S

from superdraft.client.wire import SESSION_HEADER
from superdraft.decoding.model.native.library import BUNDLED
from superdraft.server.app import create_app
from superdraft.server.errors import SettingsError
from superdraft.server.observe.metrics import Metrics
from superdraft.server.ray_replicas.options import ENVIRONMENT
from superdraft.server.settings import Settings
from superdraft.server.settings_sources import load_settings

ROOT = Path(__file__).parents[3]
COMPOSE = ROOT / "docker-compose.yml"
KUBERNETES = ROOT / "deploy/kubernetes/superdraft.yaml"
PROMETHEUS = ROOT / "deploy/prometheus/prometheus.yml"
GRAFANA = ROOT / "deploy/grafana"
DOCKERFILE = (ROOT / "Dockerfile").read_text()

compose = yaml.safe_load(COMPOSE.read_text())
manifests = {manifest["kind"]: manifest for manifest in yaml.safe_load_all(KUBERNETES.read_text())}
pod = manifests["Deployment"]["spec"]["template"]["spec"]
(container,) = pod["containers"]


def tool(*command: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name(command[0])
    return subprocess.run([program, *command[1:]], capture_output=True, text=True, check=False)


def settings_of(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return load_settings()


def paths_of_app() -> set[str]:
    return set(create_app(Settings(), FakeEngine(), model_name="tiny").openapi()["paths"])


# Schemas and linters


@pytest.mark.parametrize(
    "command",
    [
        ("hadolint", str(ROOT / "Dockerfile")),
        ("check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE)),
        ("kubernetes-validate", "--strict", str(KUBERNETES)),
        ("kubernetes-validate", "--strict", str(KUBERNETES.with_name("ingress.yaml"))),
        ("kubernetes-validate", "--strict", str(KUBERNETES.with_name("autoscaling.yaml"))),
    ],
    ids=lambda command: command[0],
)
def test_the_linters_find_nothing(command):
    done = tool(*command)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("command", "good", "bad"),
    [
        (("hadolint",), "USER 1000:1000\nWORKDIR", "USER root\nWORKDIR"),
        (("check-jsonschema", "--builtin-schema", "vendor.compose-spec"), "read_only:", "readonly:"),
        (("kubernetes-validate", "--strict"), "failureThreshold:", "failureTreshold:"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_the_linters_would_find_something(command, good, bad, tmp_path):
    source = {"hadolint": ROOT / "Dockerfile", "check-jsonschema": COMPOSE, "kubernetes-validate": KUBERNETES}[
        command[0]
    ]
    assert good in source.read_text()
    wrong = tmp_path / source.name
    wrong.write_text(source.read_text().replace(good, bad))
    assert tool(*command, str(wrong)).returncode != 0


# The image


def test_the_image_serves_on_the_port_that_it_declares(monkeypatch):
    (ports,) = re.findall(r"^EXPOSE (\d+)$", DOCKERFILE, re.MULTILINE)
    assert int(ports) == Settings().port
    variables = dict(re.findall(r"\b(SUPERDRAFT_[A-Z_]+)=(\S+)", DOCKERFILE.partition("AS runtime")[2]))
    settings = settings_of(variables, monkeypatch)
    assert settings.host == "0.0.0.0"
    assert not settings.allow_unauthenticated  # so that it does not start for everybody unless it is told to


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
def test_the_image_is_healthy_when_it_is_ready(status, healthy):
    (command,) = re.findall(r"^ +CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    program, *arguments = json.loads(command)
    assert program == "python"
    assert f'"SUPERDRAFT_PORT", {Settings().port})' in arguments[-1]
    asked = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        environment = {"SUPERDRAFT_PORT": str(server.server_port), "http_proxy": "http://127.0.0.1:9"}  # nobody there
        done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, timeout=PATIENCE_S)
    assert asked == ["/ready"], done.stderr
    assert asked[0] in paths_of_app()
    assert (done.returncode == 0) is healthy


def test_the_image_gets_no_kernels_that_were_compiled_elsewhere():
    """They may be of other sources, and would come with the package."""
    kept_out = (ROOT / ".dockerignore").read_text().splitlines()
    assert BUNDLED.resolve().relative_to(ROOT).as_posix() in kept_out[kept_out.index("!decoding") :]


def test_the_programs_for_ngram_models_are_built_from_files_that_exist():
    (copied,) = re.findall(r"^COPY (ngram_models/.*) superdraft/ngram_models/$", DOCKERFILE, re.MULTILINE)
    needed = {Path(name) for name in copied.split()}
    assert all((ROOT / name).is_file() for name in needed)
    code = """
import sys
from superdraft.ngram_models import tools
print(*sorted(name for name in sys.modules if name.startswith("superdraft.ngram_models.")))
"""
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    modules = {Path(f"ngram_models/{name.rpartition('.')[2]}.py") for name in loaded}
    assert needed == {*modules, Path("ngram_models/__init__.py")}


# Compose, Prometheus, Grafana


def test_compose_runs_the_image_as_it_is_meant(monkeypatch):
    server = compose["services"]["superdraft"]
    settings = settings_of(server["environment"], monkeypatch)
    assert server["ports"] == [f"127.0.0.1:{settings.port}:{settings.port}"]  # nobody is asked for a key
    assert server["read_only"]
    assert server["tmpfs"] == ["/tmp"]
    (volume,) = re.findall(r'^VOLUME \["(.*)"\]$', DOCKERFILE, re.MULTILINE)
    assert server["volumes"] == [f"models:{volume}"]
    assert int(server["stop_grace_period"].removesuffix("s")) > settings.shutdown_grace_s + 5
    assert set(server["build"]["args"]) <= set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE))


def test_every_file_that_compose_mounts_is_there():
    for service in compose["services"].values():
        for source, _, _ in (volume.partition(":") for volume in service["volumes"]):
            assert source in compose["volumes"] or (ROOT / source).exists(), source


def test_prometheus_may_ask_the_server_for_its_metrics_and_other_sites_may_not(monkeypatch):
    (job,) = yaml.safe_load(PROMETHEUS.read_text())["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"superdraft:{Settings().port}"]}]
    settings = settings_of(compose["services"]["superdraft"]["environment"], monkeypatch)
    assert settings.allowed_hosts == ("superdraft",)
    with TestClient(create_app(settings, FakeEngine(), model_name="tiny")) as client:
        path = job.get("metrics_path", "/metrics")
        statuses = [
            client.get(path, headers={"host": f"{name}:8000"}).status_code
            for name in ("superdraft", "localhost", "evil.example")
        ]
    assert statuses == [200, 200, 403]


def test_grafana_finds_prometheus_and_the_dashboard():
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in compose["services"]
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/superdraft.yml").read_text())["providers"]
    mounted = {
        volume.split(":")[1] for volume in compose["services"]["grafana"]["volumes"] if "superdraft.json" in volume
    }
    assert {Path(path).parent.as_posix() for path in mounted} == {provider["options"]["path"]}
    variables = json.loads((GRAFANA / "superdraft.json").read_text())["templating"]["list"]
    assert {"datasource": "prometheus"}.items() <= {
        v["type"]: v["query"] for v in variables
    }.items()  # any; here the one


# Kubernetes


def test_the_pods_settings_are_settings(monkeypatch):
    settings = settings_of({variable["name"]: variable["value"] for variable in container["env"]}, monkeypatch)
    assert str(settings.num_threads) == container["resources"]["limits"]["cpu"]
    assert str(settings.api_keys_file).startswith(tuple(mount["mountPath"] for mount in container["volumeMounts"]))
    assert settings.kv_memory < 2 * 1024**3  # of the 4 GiB that the pod has


def test_the_probes_ask_for_routes_that_need_no_key():
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": Settings().port}
    for name, path in (("startupProbe", "/ready"), ("readinessProbe", "/ready"), ("livenessProbe", "/health")):
        assert container[name]["httpGet"] == {"path": path, "port": "http"}
        assert path in paths_of_app()


def test_the_service_puts_no_variables_into_its_pods(monkeypatch):
    prefix = manifests["Service"]["metadata"]["name"].upper()
    monkeypatch.setenv(f"{prefix}_SERVICE_HOST", "10.96.0.9")
    with pytest.raises(SettingsError):
        load_settings()
    assert pod["enableServiceLinks"] is False


@pytest.mark.parametrize("file", [COMPOSE, *sorted((ROOT / "deploy").rglob("*.y*ml"))], ids=lambda file: file.name)
def test_every_variable_in_the_files_and_their_comments_is_a_setting(file):
    variables = {name.lower() for name in re.findall(r"SUPERDRAFT_([A-Z_]+)", file.read_text())}
    assert variables <= set(Settings.model_fields)


def test_a_pod_has_time_to_drain():
    grace = {variable["name"]: variable["value"] for variable in container["env"]}["SUPERDRAFT_SHUTDOWN_GRACE_S"]
    pause = container["lifecycle"]["preStop"]["exec"]["command"][1]
    assert pod["terminationGracePeriodSeconds"] > float(grace) + float(pause) + 5


def test_a_pod_has_no_rights_and_writes_only_to_its_volumes():
    assert pod["securityContext"]["runAsNonRoot"]
    (user,) = set(re.findall(r"^USER (\d+):\1$", DOCKERFILE, re.MULTILINE))
    assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"] == int(user)
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    mounted = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
    assert mounted == {"/tmp", "/var/lib/superdraft"}


def test_the_service_and_the_budget_are_for_the_pods():
    labels = manifests["Deployment"]["spec"]["template"]["metadata"]["labels"]
    service = manifests["Service"]["spec"]
    assert service["selector"] == labels
    assert service["ports"][0]["targetPort"] == "http"
    assert service["sessionAffinity"] == "ClientIP"
    assert manifests["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert manifests["Deployment"]["spec"]["replicas"] > manifests["PodDisruptionBudget"]["spec"]["maxUnavailable"]


def addition(name: str) -> dict:
    return yaml.safe_load((KUBERNETES.parent / name).read_text())


def test_what_is_added_names_what_is_there():
    service, labels = manifests["Service"], {"app.kubernetes.io/name": "superdraft"}
    (rule,) = addition("ingress.yaml")["spec"]["rules"]
    (path,) = rule["http"]["paths"]
    assert path["backend"]["service"] == {
        "name": service["metadata"]["name"],
        "port": {"name": service["spec"]["ports"][0]["name"]},
    }
    scaling = addition("autoscaling.yaml")["spec"]
    assert scaling["scaleTargetRef"]["name"] == manifests["Deployment"]["metadata"]["name"]
    metrics = Metrics()
    metrics.watch_admission(lambda: 0)
    assert f"\n{scaling['metrics'][0]['pods']['metric']['name']} " in generate_latest(metrics.registry).decode()
    assert manifests["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels


def test_the_ingress_spreads_clients_that_name_no_session():
    (key,) = (value for name, value in addition("ingress.yaml")["metadata"]["annotations"].items() if "hash-by" in name)
    assert key == f"$http_{SESSION_HEADER.replace('-', '_')}$remote_addr"  # an absent header is empty for all


def test_metrics_are_fetched_with_a_key():
    monitor = addition("service-monitor.yaml")["spec"]
    (endpoint,) = monitor["endpoints"]
    assert monitor["selector"]["matchLabels"] == manifests["Service"]["metadata"]["labels"]
    assert endpoint["port"] == manifests["Service"]["spec"]["ports"][0]["name"]
    assert endpoint["path"] in paths_of_app()
    assert endpoint["authorization"]["credentials"]["key"]
    assert "prometheus.io" not in KUBERNETES.read_text()  # annotations send no key


def test_the_key_for_metrics_is_written_as_prometheus_can_send_it(tmp_path):
    text = (KUBERNETES.parent / "service-monitor.yaml").read_text()
    (command,) = re.findall(r"^# +(superdraft keys new .*)$", text, re.MULTILINE)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-ec", command], cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert re.fullmatch(rb"sd-[\w-]{40,}", (tmp_path / "metrics-key").read_bytes())
    secrets = re.findall(r"create secret generic (\S+)", text)
    assert secrets[1:] == [volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume]


def test_a_gpus_pods_have_settings_that_exist(monkeypatch):
    (patched,) = addition("gpu.yaml")["spec"]["template"]["spec"]["containers"]
    settings = settings_of({variable["name"]: variable["value"] for variable in patched["env"]}, monkeypatch)
    assert settings.device == "cuda"
    assert patched["name"] == container["name"]
    assert "nvidia.com/gpu" in patched["resources"]["limits"]


def test_every_service_of_compose_has_a_memory_limit():
    assert all("mem_limit" in service for service in compose["services"].values())


# The document


def test_the_documents_commands_are_of_this_project():
    text = (ROOT / "docs/deployment.md").read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 6
    for block in blocks:
        parsed = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, check=False)
        assert parsed.returncode == 0, parsed.stderr
    arguments = set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE))
    assert set(re.findall(r"--build-arg (\w+)=", text)) <= arguments
    table = text.partition("| Build argument |")[2].partition("\n\n")[0]
    assert set(re.findall(r"`([A-Z_]+)`", table)) == arguments
    variables = {name.removeprefix("SUPERDRAFT_").lower() for name in re.findall(r"SUPERDRAFT_[A-Z_]+", text)}
    assert variables <= set(Settings.model_fields)
    flags = {name.replace("-", "_") for name in re.findall(r"--(ray-[a-z-]+)", text)}
    assert flags == {name for name in Settings.model_fields if name.startswith("ray_")}
    assert (
        dict(re.findall(r"\b(RAY_[A-Z_]+)=([\w.-]+)", text)).items() >= ENVIRONMENT.items()
    )  # for a cluster's machines
    assert all((ROOT / name).is_file() for name in re.findall(r"deploy/[a-z_/.-]+\.\w+", text))
