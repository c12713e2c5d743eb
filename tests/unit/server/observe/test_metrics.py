"""Metrics and records: what is counted when, with which labels; the dashboard and the docs name what exists."""

import json
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.decoding import run_all
from support.fake_runner import fake_engine

from superdraft.decoding.outputs import GenerationOutput, Timings, Usage
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.request import EngineRequest
from superdraft.server.observe.log_config import describe_exception
from superdraft.server.observe.metrics import Metrics
from superdraft.server.observe.request_record import RequestRecord, current_record, start_record

ROOT = Path(__file__).parents[4]
DASHBOARD = ROOT / "deploy/grafana/superdraft.json"
PROMPT = "Thank you for your"


def answer(rows: int = 9, draft_rows: int = 27) -> GenerationOutput:
    """9 rows that drafts shared at three depths; more rows are those of a verification."""
    usage = Usage(20, 27, 15, rows, (4, 3, 2), draft_rows, 2, limited_by_load=True)
    return GenerationOutput("a", (), usage, Timings(4.0, 5.0, 30.0, 7.0, 41.0), ())


def watched() -> tuple[Metrics, object, object]:
    metrics = Metrics()
    engine, _, clock = fake_engine(num_slots=2)
    metrics.watch(engine)
    return metrics, engine, clock


def everything() -> Metrics:
    """Metrics of which every family has a sample."""
    metrics, engine, _ = watched()
    metrics.watch_admission(lambda: 3)
    engine.add_request(EngineRequest("a", PROMPT, GenerationParams(max_tokens=2)))
    engine.step()
    metrics.observe_step(engine.last_step)
    metrics.observe_request("/v1/drafts", 200, "superposed", 0.1)
    metrics.observe_generation(GenerationParams(), answer())
    metrics.count_shed("queue_full")
    metrics.count_draft_event("shown", 0, 0.3)
    return metrics


def labels_of_samples(metrics: Metrics) -> dict[str, set[str]]:
    return {
        sample.name: set(sample.labels)
        for family in metrics.registry.collect()
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def test_request_counts_by_route_status_and_strategy():
    metrics = Metrics()
    metrics.observe_request("/v1/drafts", 200, "superposed", 0.3)
    metrics.observe_request("/v1/drafts", 200, "superposed", 0.1)
    metrics.observe_request("other", 404, None, 0.1)
    get = metrics.registry.get_sample_value
    labels = {"route": "/v1/drafts", "status": "200", "strategy": "superposed"}
    assert get("superdraft_requests_total", labels) == 2
    assert get("superdraft_requests_total", {"route": "other", "status": "404", "strategy": "none"}) == 1
    del labels["status"]
    assert get("superdraft_request_seconds_sum", labels) == pytest.approx(0.4)
    assert metrics.total("superdraft_requests_total") == 3
    assert metrics.total("no_such_metric") == 0
    assert Metrics().total("superdraft_requests_total") == 0  # an app's own


def test_generation_counts_tokens_times_and_rows():
    metrics = Metrics()
    metrics.observe_generation(GenerationParams(num_drafts=3), answer())
    expected = {
        "superdraft_prompt_tokens_total": 20,
        "superdraft_cached_tokens_total": 15,
        "superdraft_completion_tokens_total": 27,
        "superdraft_ngram_seconds_total": 0.007,
        "superdraft_queue_seconds_sum": 0.004,
        "superdraft_forward_rows_sum": 9,
        "superdraft_superposed_rows_total": 9,
        "superdraft_separate_rows_total": 27,
        "superdraft_rows_by_depth_total": 9,
        "superdraft_reused_drafts_total": 2,
        "superdraft_limited_by_load_total": 1,
    }
    assert {name: metrics.total(name) for name in expected} == pytest.approx(expected)


def test_only_rows_that_drafts_share_count_as_saved():
    metrics = Metrics()
    metrics.observe_generation(GenerationParams(num_drafts=3, verify_top=0), answer(rows=36))
    metrics.observe_generation(GenerationParams(num_drafts=3), answer(draft_rows=9))  # a row per draft
    metrics.observe_generation(GenerationParams(strategy="sample", num_drafts=3), answer())
    metrics.observe_generation(GenerationParams(num_drafts=1), answer())
    assert metrics.total("superdraft_superposed_rows_total") == 2 * 9
    assert metrics.total("superdraft_separate_rows_total") == 27 + 9
    assert metrics.total("superdraft_forward_rows_sum") == 36 + 3 * 9


def test_rows_of_late_tokens_are_counted_together():
    metrics = Metrics()
    usage = Usage(1, 1, 0, 20, (1,) * 20, 20)
    metrics.observe_generation(GenerationParams(), GenerationOutput("a", (), usage, Timings(1, 1, 1, 1, 1), ()))
    counted = {
        sample.labels["depth"]: sample.value
        for sample in metrics._rows_by_depth.collect()[0].samples
        if sample.name.endswith("_total")
    }
    assert counted == {**{str(depth): 1 for depth in range(1, 16)}, "16": 5}


def test_steps_are_timed_by_kind_and_first_drafts_once_a_prompt():
    metrics, engine, clock = watched()
    clock.now_s = 1.0
    engine.add_request(EngineRequest("a", PROMPT, GenerationParams(max_tokens=3)))
    engine.add_request(EngineRequest("warm-up", "Once", GenerationParams(max_tokens=0)))
    clock.now_s = 1.25
    while engine.has_unfinished:
        engine.step()
        metrics.observe_step(engine.last_step)
    get = metrics.registry.get_sample_value
    assert get("superdraft_step_seconds_count", {"kind": "prefill"}) == 1
    assert get("superdraft_step_seconds_count", {"kind": "decode"}) == 2
    assert get("superdraft_first_draft_seconds_count") == 1  # a warm-up has no draft
    assert get("superdraft_first_draft_seconds_sum") == pytest.approx(0.25)
    engine.step()  # nothing to do
    metrics.observe_step(engine.last_step)
    assert metrics.total("superdraft_step_seconds_count") == 3


def test_requests_out_of_time_count_as_cancelled():
    metrics, engine, clock = watched()
    for name in "abc":
        deadline_s = 1.0 if name < "c" else None
        engine.add_request(EngineRequest(name, PROMPT, GenerationParams(max_tokens=9), deadline_s=deadline_s))
    engine.step()
    metrics.observe_step(engine.last_step)
    clock.now_s = 2.0
    engine.step()
    metrics.observe_step(engine.last_step)
    assert metrics.registry.get_sample_value("superdraft_cancelled_total", {"reason": "deadline"}) == 2
    run_all(engine)


def test_gauges_show_the_engine_when_asked():
    metrics, engine, _ = watched()
    names = ["slots", "used_slots", "running_sequences", "waiting_sequences"]

    def gauges() -> list[float | None]:
        return [metrics.registry.get_sample_value(f"superdraft_{name}") for name in names]

    assert gauges() == [2, 0, 0, 0]
    for name in "abc":
        engine.add_request(EngineRequest(name, PROMPT, GenerationParams(max_tokens=4)))
    assert gauges() == [2, 0, 0, 3]
    engine.step()
    assert gauges() == [2, 2, 2, 1]
    metrics.watch_admission(lambda: 3)
    assert metrics.registry.get_sample_value("superdraft_waiting_requests") == 3
    run_all(engine)
    assert gauges() == [2, 0, 0, 0]


def test_ranks_are_few():
    metrics = Metrics()
    for rank in (0, 9, 10, 10**9, -1):
        metrics.count_draft_event("accepted", rank)
    text = metrics.exposition("")[0].decode()
    assert set(re.findall(r'rank="([^"]*)"', text)) == {"0", "9", "10+"}


def test_exposition_is_what_prometheus_reads():
    body, content_type = everything().exposition("")
    assert content_type.startswith("text/plain")
    names = {family.name for family in text_string_to_metric_families(body.decode())}
    assert {"superdraft_requests", "superdraft_step_seconds", "process_resident_memory_bytes"} <= names
    body, content_type = everything().exposition("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


# The dashboard


def selectors(promql: str) -> list[tuple[str, set[str]]]:
    """The metrics of an expression, with the labels that they are selected or grouped by."""
    text = re.sub(r'"[^"]*"', '""', promql)
    by = r"\bby\s*\(([^)]*)\)"
    grouped = {label.strip() for group in re.findall(by, text) for label in group.split(",")}
    text = re.sub(rf"{by}|\[[^]]*\]", "", text)
    found = re.findall(r"\b([a-zA-Z_:][\w:]*)\b(?!\s*\()(?:\{([^}]*)\})?", text)
    return [(name, grouped | set(re.findall(r"(\w+)\s*[=!]", matchers))) for name, matchers in found]


def test_selectors_of_an_expression():
    expression = 'sum by (le, kind) (rate(a_bucket{x="by (b)", y!~"c{2}"}[$__rate_interval])) / max(d_total) > 0.5'
    assert [name for name, _ in selectors(expression)] == ["a_bucket", "d_total"]
    assert selectors(expression)[0][1] == {"le", "kind", "x", "y"}


def test_dashboard_asks_only_for_metrics_and_labels_that_exist():
    dashboard = json.loads(DASHBOARD.read_text())
    known = labels_of_samples(everything())
    asked = set()
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            for name, labels in selectors(target["expr"]):
                assert name in known, f"{panel['title']}: {name}"
                assert labels - {"instance"} <= known[name], f"{panel['title']}: {labels} of {name}"
                asked.add(name)
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= {"instance"} | labels
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            (name,) = re.findall(r"label_values\((\w+),", variable["definition"])
            assert name in known
    ours = {re.sub(r"_(bucket|sum|count)$", "", name) for name in known if name.startswith("superdraft_")}
    assert ours == {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked if name.startswith("superdraft_")}


def test_dashboard_is_one_that_grafana_takes():
    dashboard = json.loads(DASHBOARD.read_text())
    panels = dashboard["panels"]
    assert dashboard["id"] is None  # given by the Grafana that imports it
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for grid in (panel["gridPos"] for panel in panels)
        for x in range(grid["x"], grid["x"] + grid["w"])
        for y in range(grid["y"], grid["y"] + grid["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    for panel in panels:
        assert panel["datasource"]["uid"] == "${datasource}"
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_docs_list_every_metric_with_its_labels():
    rows = re.findall(r"^\| `(superdraft_\w+)` \| (\w+) \|([^|]*)\|", (ROOT / "docs/operating.md").read_text(), re.M)
    documented = {(name, kind, frozenset(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    exported = set()
    for family in everything().registry.collect():
        if family.name.startswith("superdraft_"):
            labels = frozenset(label for sample in family.samples for label in sample.labels) - {"le"}
            name = f"{family.name}_total" if family.type == "counter" else family.name
            exported.add((name, family.type, labels))
    assert documented == exported


# Records


def test_records_of_two_requests_are_apart():
    import contextvars

    first = contextvars.copy_context().run(start_record)
    second = contextvars.copy_context().run(lambda: (start_record(), current_record()))
    assert second[0] is second[1] is not first
    assert current_record() is not current_record()  # outside of requests nobody reads it


def test_record_sums_prompts_and_keeps_the_slowest_times():
    record = RequestRecord()
    assert record.fields() == {}
    for queue_ms in (4.0, 1.0):
        record.begin(GenerationParams(num_drafts=3))
        record.add(GenerationOutput("a", (), Usage(20, 27, 15, 9), Timings(queue_ms, 5.0, 30.04, 7.0, 41.0), ()))
    assert record.fields() == {
        "strategy": "superposed",
        "num_drafts": 3,
        "num_prompts": 2,
        "prompt_tokens": 40,
        "cached_tokens": 30,
        "completion_tokens": 54,
        "forward_rows": 18,
        "queue_ms": 4.0,
        "prefill_ms": 5.0,
        "decode_ms": 30.0,
        "ngram_ms": 7.0,
    }


# What exceptions may say in the log


def test_foreign_messages_are_withheld_causes_included():
    secret = "zanzi" + "bar"  # not in the source lines that a traceback shows

    def raise_chain():
        try:
            raise KeyError(secret)
        except KeyError as error:
            raise OSError(28, "No space left on device") from error

    with pytest.raises(OSError) as caught:
        raise_chain()
    text = describe_exception(caught.value)
    assert text.index("KeyError: (message withheld") < text.index("OSError: [Errno 28] No space left on device")
    assert "in raise_chain" in text
    group = describe_exception(ExceptionGroup(secret, [ValueError(secret), TypeError(secret)]))
    assert "ValueError" in group
    assert "TypeError" in group
    assert secret not in text + group


def test_a_circle_of_causes_ends():
    first, second = ValueError(), TypeError()
    first.__cause__, second.__cause__ = second, first
    assert describe_exception(first).count("ValueError") == 5
