"""The benchmark of what token healing costs."""

import json
import types

import pytest
from support.decoding import tiny_engine
from support.models import tiny_model_folder

from superdraft.benchmarks.in_process import healing_cost, request_cost
from superdraft.benchmarks.in_process.healing_cost import INSIDE_WORD, WORD_END, built_in_places, places_of, row_of
from superdraft.benchmarks.in_process.request_cost import Cost, ask, num_steps, timed
from superdraft.benchmarks.typing_texts import TEXTS
from superdraft.decoding.params import GenerationParams
from superdraft.server.errors import CommandError


def cost(total_ms, *, steps=2, decode_ms=4.0, bookkeeping=0.0):
    return Cost(3.0, decode_ms, steps, 5, total_ms, {"covers": bookkeeping, "plan_healing": 0.0})


def test_built_in_prompts_end_behind_words_and_inside_the_same_words():
    found = built_in_places(12)
    ends, inside = ([one.text for one in found if one.place == place] for place in (WORD_END, INSIDE_WORD))
    assert (len(ends), len(inside), len({*ends, *inside})) == (12, 12, 24)
    for whole, half in zip(ends, inside, strict=True):
        (text,) = [text for text in TEXTS if text.startswith(whole)]
        assert not text[len(whole)].isalpha()
        word = whole.split()[-1]
        assert whole.startswith(half)
        assert 2 <= len(half.split()[-1]) < len(word)


def test_prompts_of_files_are_limited_by_place(tmp_path):
    file = tmp_path / "p.jsonl"
    rows = [{"prompt": f"at the end {i}", "reference": "x"} for i in range(3)]
    rows += [{"prompt": "x", "reference": "too short"}, {"prompt": "an ap", "reference": "ple", "typed": "ap"}]
    file.write_text("\n".join(map(json.dumps, rows)))
    assert [(one.text, one.place) for one in places_of([file], 2)] == [
        ("at the end 0", WORD_END),
        ("at the end 1", WORD_END),
        ("an ap", INSIDE_WORD),
    ]
    file.write_text(json.dumps(rows[3]))
    with pytest.raises(CommandError, match="no prompts of two characters"):
        places_of([file], 2)


def test_a_prompt_that_joins_a_decode_step_is_no_step_of_its_drafts():
    assert num_steps(["prefill", "decode", "decode"]) == 2
    assert num_steps(["prefill", "prefill", "decode"]) == 1
    assert num_steps(["decode", "decode", "decode"]) == 2
    assert num_steps(["prefill"]) == num_steps([]) == 0


def test_functions_are_timed_and_then_as_they_were(monkeypatch):
    now_s = iter([1.0, 1.5, 4.0, 4.25])
    monkeypatch.setattr(request_cost.time, "perf_counter", lambda: next(now_s))

    def double(number):
        if number < 0:
            raise ValueError("negative")
        return 2 * number

    owner = types.SimpleNamespace(double=double, other=str)
    with timed([(owner, "double"), (owner, "other")]) as seconds:
        assert owner.double(4) == 8
        with pytest.raises(ValueError, match="negative"):
            owner.double(number=-1)
    assert seconds == {"double": 0.75, "other": 0.0}
    assert owner.double is double


def test_every_function_that_is_timed_has_a_part_in_a_healed_request_and_none_in_another():
    engine, _ = tiny_engine()
    text = "Please find the rep"
    healed = ask(engine, text, GenerationParams(num_drafts=3, max_tokens=4, token_healing=True), None)
    unhealed = ask(engine, text, GenerationParams(num_drafts=3, max_tokens=4, token_healing=False), None)
    assert set(healed.bookkeeping_ms) == {"plan_healing", "covers", "add", "choose_start", "next_unrun"}
    assert all(healed.bookkeeping_ms[name] > 0 for name in ("plan_healing", "covers", "choose_start", "next_unrun"))
    assert sum(healed.bookkeeping_ms.values()) < healed.total_ms
    assert sum(unhealed.bookkeeping_ms.values()) == 0
    assert (unhealed.steps, unhealed.rows) == (3, 3)
    # All but the last token is kept now: the prompt joins a decode step, which is not one of the drafts'.
    again = ask(engine, text, GenerationParams(num_drafts=3, max_tokens=4, token_healing=False), None)
    assert engine.num_prefilled_tokens > 0
    assert (again.steps, again.rows) == (3, 3)


def test_a_row_has_medians_of_each_kind_and_of_the_pairs():
    pairs = [(cost(20.0, bookkeeping=1.0), cost(10.0)), (cost(40.0, bookkeeping=4.0), cost(10.0))]
    pairs += [(cost(30.0, bookkeeping=6.0, steps=0, decode_ms=0.0), cost(15.0, steps=0))]
    row = row_of(3, WORD_END, "cold", pairs)
    assert (row["requests"], row["on"]["total_ms"]["median"], row["off"]["total_ms"]["median"]) == (3, 30.0, 10.0)
    assert row["total_ratio"]["median"] == 2.0
    assert row["extra_ms"]["median"] == 15.0
    assert row["on"]["step_ms"]["median"] == 2.0  # requests without a step say nothing of steps
    assert row["bookkeeping"]["ms"]["median"] == 4.0
    assert row["bookkeeping"]["share"]["median"] == 0.1
    assert row["bookkeeping"]["parts_ms"] == {"covers": 4.0, "plan_healing": 0.0}
    assert row_of(3, WORD_END, "cold", pairs[2:])["on"]["step_ms"] is None


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("healing-cost")
    file = folder / "p.jsonl"
    rows = [
        {"prompt": "Thank you for your", "reference": "email"},
        {"prompt": "Please find the rep", "reference": "ort", "typed": "rep"},
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    return str(tiny_model_folder(folder, "llama")), file


@pytest.mark.parametrize("as_json", [True, False])
def test_the_command_reports_every_k_place_and_state_of_the_cache(measured, as_json, monkeypatch, capsys):
    from typer.testing import CliRunner

    from superdraft.server.cli.bench import app

    model, file = measured
    # Both would stay for all tests.
    monkeypatch.setattr("superdraft.benchmarks.in_process.healing_cost.configure_logging", lambda *_: None)
    monkeypatch.setattr("torch.set_num_threads", lambda _: None)
    asked = []
    monkeypatch.setattr(healing_cost, "ask", lambda engine, text, *more: asked.append(text) or ask(engine, text, *more))
    options = ["--prompts", str(file), "--model", model, "--dtype", "float32", "-k", "2", "-k", "3", "-n", "4"]
    done = CliRunner().invoke(app, ["healing-cost", *options, *(["--json"] if as_json else [])])
    assert done.exit_code == 0, done.output
    if not as_json:
        assert "share of total" in done.output
        assert "inside word" in done.output
        return
    report = json.loads(done.output[done.output.index("{\n") :])
    keys = [(row["num_drafts"], row["place"], row["prompt"]) for row in report["rows"]]
    assert sorted(keys) == sorted(
        (k, place, kept) for k in (2, 3) for place in (WORD_END, INSIDE_WORD) for kept in ("cold", "warm")
    )
    assert report["settings"]["max_tokens"] == 4
    assert report["machine"]["cores"] > 0
    for row in report["rows"]:
        assert row["requests"] == 1
        assert row["on"]["prefill_ms"]["median"] > 0
        assert 0 < row["bookkeeping"]["share"]["median"] < 1
    warm_up = 2 * 2 * 2  # for each k two prompts, both kinds
    assert len(asked) == warm_up + 2 * 2 * 2 * 2
