import pickle

from prometheus_client.parser import text_string_to_metric_families

from superdraft.server.observe.metrics import Metrics
from superdraft.server.ray_replicas.metrics import AllReplicas, ReplicaMetrics


def replica(name, num_requests, seconds=0.1):
    metrics = Metrics()
    for _ in range(num_requests):
        metrics.observe_request("/v1/drafts", 200, "superposed", seconds)
    return pickle.loads(pickle.dumps(ReplicaMetrics(name, list(metrics.registry.collect()))))  # as between processes


def test_the_metrics_of_all_replicas_are_shown_with_their_names():
    shown = Metrics()
    shown.shown = AllReplicas(lambda: [replica("r1", 2), replica("r2", 5)])
    for accept in ("text/plain", "application/openmetrics-text; version=1.0.0"):
        text = shown.exposition(accept)[0].decode()
        assert text.count("# TYPE superdraft_request_seconds histogram") == 1
    families = {family.name: family for family in text_string_to_metric_families(shown.exposition("")[0].decode())}
    samples = families["superdraft_requests"].samples
    counts = {s.labels["replica"]: s.value for s in samples if s.name == "superdraft_requests_total"}
    assert counts == {"r1": 2, "r2": 5}
    assert all("replica" in sample.labels for family in families.values() for sample in family.samples)
    buckets = families["superdraft_request_seconds"].samples
    assert {s.labels["replica"]: s.value for s in buckets if s.labels.get("le") == "+Inf"} == {"r1": 2, "r2": 5}


def test_the_shown_metrics_are_those_of_the_moment():
    asked = []
    shown = Metrics()
    shown.shown = AllReplicas(lambda: asked.append(1) or [replica("r1", len(asked))])
    assert (
        b'superdraft_requests_total{replica="r1",route="/v1/drafts",status="200",strategy="superposed"} 1.0'
        in (shown.exposition("")[0])
    )
    assert b'strategy="superposed"} 2.0' in shown.exposition("")[0]


def test_without_replicas_a_process_shows_its_own():
    metrics = Metrics()
    metrics.observe_request("/v1/drafts", 200, "superposed", 0.1)
    assert b"replica=" not in metrics.exposition("")[0]
    assert b"superdraft_requests_total{" in metrics.exposition("")[0]
