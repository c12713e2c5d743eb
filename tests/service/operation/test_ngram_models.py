"""N-gram models of requests through the whole app, on a tiny model: chosen, mixed, added, replaced and deleted."""

import gc
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import pytest
from support.decoding import tiny_engine
from support.ngram_folders import damage, put_model, random_arpa
from support.serving import num_commands, serving
from support.waiting import PATIENCE_S, eventually

from superdraft.decoding.params import DEFAULT_ALPHA, DEFAULT_TAU
from superdraft.ngram_models.store.manifest import Manifest, TokenizerIdentity, Tuning
from superdraft.ngram_models.vocabulary import tokenizer_fingerprint
from superdraft.server.app import create_app
from superdraft.server.ngrams.folders import ModelFolders
from superdraft.server.ngrams.registry import NgramModels
from superdraft.server.settings import Settings

PROMPT = "The quick brown fox jumps over the lazy dog. The quick brown"
CHOICES = (
    {"ngram_model": "mail"},
    {"ngram_model": "code"},
    {"ngram_model": {"mail": 0.7, "code": 0.3}},
    {"ngram_model": None},
)


class SteppedEngine:
    """An engine whose steps can be held; the rest is the engine's own."""

    def __init__(self, engine):
        self._engine = engine
        self.num_steps = 0
        self.most_slots = 0
        self.hold_after = None
        self.go_on = threading.Event()

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def step(self):
        if self.hold_after is not None and self.num_steps >= self.hold_after:
            assert self.go_on.wait(PATIENCE_S)
        outputs = self._engine.step()
        self.num_steps += 1
        self.most_slots = max(self.most_slots, self._engine.num_used_slots)
        return outputs

    @property
    def is_held(self):
        return self.hold_after is not None and self.num_steps >= self.hold_after


def ids(drafts):
    return [draft["token_ids"] for draft in drafts]


class World:
    """A server, its engine, and its models on disk."""

    def __init__(self, app, url, engine, home, tokenizer):
        self.app, self.engine, self.home = app, engine, home
        self._tokenizer = tokenizer
        self._client = httpx.Client(base_url=url)

    def put(self, name, seed):
        arpa = random_arpa(seed, self._tokenizer.vocabulary_size)
        return put_model(self.home, name, arpa, order=2, tokenizer=self._tokenizer)

    def post(self, **body):
        # Beside 0.5, the tiny model's tempered distribution leaves the n-gram model a say in which draft goes on how.
        common = {"prompt": PROMPT, "max_tokens": 12, "alpha": 0.5, "tau": 2.0, "token_healing": False}
        return self._client.post("/v1/drafts", json=common | body)

    def drafts(self, **body):
        response = self.post(**body)
        assert response.status_code == 200, response.text
        return response.json()["drafts"]

    def refused(self, status, **body):
        response = self.post(**body)
        assert response.status_code == status, response.text
        return response.json()["error"]

    def listed(self):
        return self._client.get("/v1/ngram_models").json()

    def close(self):
        self._client.close()


@pytest.fixture
def world(tmp_path):
    plain, _ = tiny_engine(num_slots=8, max_model_len=96)
    vocabulary = plain.tokenizer.vocabulary
    tokenizer = TokenizerIdentity("tiny", tokenizer_fingerprint(vocabulary), len(vocabulary), (0,))
    engine = SteppedEngine(plain)
    models = NgramModels(ModelFolders(tokenizer.fingerprint, home=tmp_path, max_models=2, check_interval_s=0))
    app = create_app(Settings(), engine, model_name="tiny", ngram_models=models)
    with serving(app) as url:
        world = World(app, url, engine, tmp_path, tokenizer)
        yield world
        engine.go_on.set()
        world.close()


def test_a_batch_of_other_ngram_models_equals_each_alone(world):
    world.put("mail", 1)
    world.put("code", 2)
    alone = [world.drafts(**choice) for choice in CHOICES]
    assert len({str(ids(drafts)) for drafts in alone}) == len(CHOICES)  # else the comparison would show nothing
    world.engine.hold_after, world.engine.most_slots = world.engine.num_steps, 0
    with ThreadPoolExecutor(len(CHOICES)) as pool:
        running = [pool.submit(world.drafts, **choice) for choice in CHOICES]
        # Some the engine took before it was held in a step; the others wait for it.
        engine = world.engine
        assert eventually(lambda: engine.num_waiting + engine.num_running + num_commands(world.app) == len(CHOICES))
        world.engine.go_on.set()
        together = [answer.result() for answer in running]
    assert world.engine.most_slots >= 4
    for in_batch, by_itself in zip(together, alone, strict=True):
        assert ids(in_batch) == ids(by_itself)
        scores = [draft["score"] for draft in by_itself]
        assert [draft["score"] for draft in in_batch] == pytest.approx(scores, abs=1e-4)


@pytest.mark.parametrize("change", ["replace", "delete", "replace and delete"])
def test_a_running_sequence_keeps_the_model_that_is_replaced_or_deleted(world, change):
    world.put("mail", 1)
    old = world.drafts(ngram_model="mail")
    world.put("mail", 3)
    new = world.drafts(ngram_model="mail")
    assert ids(old) != ids(new)
    world.put("mail", 1)
    assert ids(world.drafts(ngram_model="mail")) == ids(old)

    world.engine.hold_after = world.engine.num_steps + 5
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(world.drafts, ngram_model="mail")
        assert eventually(lambda: world.engine.is_held)
        next_one = None
        if "replace" in change:
            world.put("mail", 3)
            next_one = pool.submit(world.drafts, ngram_model="mail")  # loads while the engine is in its step
            assert eventually(lambda: {card["name"]: card["loaded"] for card in world.listed()["data"]}["mail"])
            assert eventually(lambda: num_commands(world.app) == 1)
        if "delete" in change:
            shutil.rmtree(world.home / "ngram" / "mail")
            assert world.refused(404, ngram_model="mail")["code"] == "ngram_model_not_found"
        gc.collect()
        world.engine.go_on.set()
        assert ids(running.result()) == ids(old)
        if next_one is not None:
            assert ids(next_one.result()) == ids(new)


def test_a_model_that_a_request_names_brings_what_was_tuned_for_it(world):
    world.put("mail", seed=1)
    folder = world.put("code", seed=2)
    replace(Manifest.read(folder), tuning=Tuning(alpha=0.9, tau=1.5, candidates_per_draft=7)).write(folder)
    tuned = {"alpha": 0.9, "tau": 1.5, "candidates_per_draft": 7}
    for choice in ("code", {"code": 0.5, "mail": 0.5}):
        by_default = ids(world.drafts(ngram_model=choice, alpha=None, tau=None, selection="paper"))
        assert by_default == ids(world.drafts(ngram_model=choice, **tuned))
        assert by_default != ids(world.drafts(ngram_model=choice, alpha=DEFAULT_ALPHA, tau=DEFAULT_TAU))
    for choice in ("mail", {"mail": 0.5, "code": 0.5}, None):
        by_default = ids(world.drafts(ngram_model=choice, alpha=None, tau=None, selection="paper"))
        assert by_default == ids(world.drafts(ngram_model=choice, alpha=DEFAULT_ALPHA, tau=DEFAULT_TAU))


def test_naming_a_model_keeps_the_selection_and_gives_the_model_a_say(world):
    world.put("mail", 1)
    settled = {"alpha": None, "tau": None, "max_branches": 3, "min_probability": 0.0}
    named = world.drafts(ngram_model="mail", **settled)
    same = world.drafts(ngram_model="mail", **settled | {"selection": "distinct", "alpha": 0.2, "tau": 1.0})
    assert ids(named) == ids(same)
    assert len({draft["text"] for draft in named}) == len(named) == 3
    for other in ({"ngram_model": None}, {"ngram_model": "mail", "selection": "distinct", "alpha": 0.9}):
        assert ids(world.drafts(**settled | other)) != ids(named)


def test_models_are_listed_as_they_come_and_go(world):
    assert "mail" not in {card["name"] for card in world.listed()["data"]}
    folder = world.put("mail", 1)
    foreign = TokenizerIdentity("another", "b" * 64, 300, (0,))
    put_model(world.home, "law", random_arpa(1, 300), order=2, tokenizer=foreign)
    answer = world.listed()
    cards = {card["name"]: card for card in answer["data"]}
    assert (answer["object"], answer["default"]) == ("list", None)
    assert cards["mail"] == {
        "name": "mail",
        "order": 2,
        "size_bytes": (folder / "model.bin").stat().st_size,
        "tokenizer": "tiny",
        "fits_tokenizer": True,
        "loaded": False,
    }
    assert (cards["law"]["tokenizer"], cards["law"]["fits_tokenizer"]) == ("another", False)
    world.drafts(ngram_model="mail")
    assert {card["name"]: card["loaded"] for card in world.listed()["data"]}["mail"]
    (folder / "manifest.json").write_text("{")
    broken = {card["name"]: card for card in world.listed()["data"]}["mail"]
    assert (broken["order"], broken["size_bytes"], broken["fits_tokenizer"]) == (None, None, False)


def test_wrong_models_have_an_error_each_and_disturb_nobody(world):
    world.put("mail", 1)
    before = world.drafts(ngram_model="mail")
    damage(world.put("torn", 2))
    foreign = TokenizerIdentity("another", "b" * 64, 300, (0,))
    put_model(world.home, "law", random_arpa(1, 300), order=2, tokenizer=foreign)
    expected = (("torn", 400, "ngram_model_damaged"), ("law", 400, "ngram_model_wrong_tokenizer"))
    missing = [
        (name, 404, "ngram_model_not_found")
        for name in ("x", "in_context", "../ngram/mail", f"{world.home}/ngram/mail", "")
    ]
    for name, status, code in (*expected, *missing):
        for choice in (name, {"mail": 1, name: 1}):
            error = world.refused(status, ngram_model=choice)
            assert (error["code"], error["param"]) == (code, "ngram_model")
            assert str(world.home) not in error["message"]
    assert ids(world.drafts(ngram_model="mail")) == ids(before)
