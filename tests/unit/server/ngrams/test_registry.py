"""Models found on disk at each request, loaded once, replaced and dropped."""

import asyncio
import gc
import math
import shutil
import threading

import pytest
from support.ngram import FINGERPRINT
from support.ngram_folders import damage, put_model, tiny_with
from support.waiting import PATIENCE_S, until

from superdraft.decoding.errors import InvalidRequestError
from superdraft.ngram_models.errors import BrokenNgramModelError, NgramModelNotFoundError, TokenizerMismatchError
from superdraft.ngram_models.store.manifest import BINARY_FILE, MANIFEST_FILE, TokenizerIdentity
from superdraft.ngram_models.store.registry import load_ngram_model, named_model_folder
from superdraft.server.edge.error_map import NotFoundError
from superdraft.server.ngrams import folders as ngram_folders
from superdraft.server.ngrams.folders import CHECK_INTERVAL_S, ModelFolders
from superdraft.server.ngrams.mixture import MixtureScorer
from superdraft.server.ngrams.registry import NgramModels

OTHER_TOKENIZER = TokenizerIdentity("another", "b" * 64, 8, (0,))


@pytest.fixture
def opened(monkeypatch):
    """The folders whose binaries were opened."""
    names = []
    plain = ngram_folders.open_scorer

    def noted(folder, manifest, **options):
        names.append(folder.name)
        return plain(folder, manifest, **options)

    monkeypatch.setattr(ngram_folders, "open_scorer", noted)
    return names


def folders_in(home, **options):
    """Checked at every request unless the options say otherwise."""
    return ModelFolders(FINGERPRINT, home=home, **{"check_interval_s": 0, **options})


def logprob_of_3(scorer):
    return scorer.score([scorer.initial_state([])], [[3]])[0][0] / math.log(10)


def run(scenario):
    return asyncio.run(asyncio.wait_for(scenario, PATIENCE_S))


def test_a_model_that_is_added_is_found_and_loaded_once(tmp_path, opened):
    folders = folders_in(tmp_path)

    async def scenario():
        with pytest.raises(NgramModelNotFoundError):
            await folders.get("mail")
        put_model(tmp_path, "mail")
        models = await asyncio.gather(*(folders.get("mail") for _ in range(5)))
        models.append(await folders.get("mail"))
        assert len({id(model.scorer) for model in models}) == 1

    run(scenario())
    assert opened == ["mail"]


def test_a_replaced_model_is_seen_and_the_old_one_goes_on(tmp_path, opened):
    put_model(tmp_path, "mail", tiny_with("-0.7"))
    folders = folders_in(tmp_path)

    async def scenario():
        old = (await folders.get("mail")).scorer
        put_model(tmp_path, "mail", tiny_with("-0.4"))
        new = (await folders.get("mail")).scorer
        gc.collect()
        assert logprob_of_3(old) == pytest.approx(-0.7)
        assert logprob_of_3(new) == pytest.approx(-0.4)
        shutil.rmtree(tmp_path / "ngram" / "mail")
        with pytest.raises(NgramModelNotFoundError):
            await folders.get("mail")
        assert not folders.is_loaded("mail")
        gc.collect()
        assert (logprob_of_3(old), logprob_of_3(new)) == (pytest.approx(-0.7), pytest.approx(-0.4))

    run(scenario())
    assert opened == ["mail", "mail"]


def test_the_files_of_a_loaded_model_are_looked_at_once_per_second(tmp_path, monkeypatch):
    now_s, looks = [100.0], []
    put_model(tmp_path, "mail", tiny_with("-0.7"))
    folders = folders_in(tmp_path, check_interval_s=CHECK_INTERVAL_S, clock=lambda: now_s[0])
    plain = ngram_folders._identity_of_file
    monkeypatch.setattr(ngram_folders, "_identity_of_file", lambda path: looks.append(path.name) or plain(path))

    async def scenario():
        await folders.get("mail")
        looks.clear()
        put_model(tmp_path, "mail", tiny_with("-0.4"))
        for _ in range(50):
            now_s[0] += 0.99 * CHECK_INTERVAL_S / 50
            assert logprob_of_3((await folders.get("mail")).scorer) == pytest.approx(-0.7)
        assert not looks
        now_s[0] += 0.02
        assert logprob_of_3((await folders.get("mail")).scorer) == pytest.approx(-0.4)
        assert looks
        shutil.rmtree(tmp_path / "ngram" / "mail")
        now_s[0] += CHECK_INTERVAL_S
        with pytest.raises(NgramModelNotFoundError):
            await folders.get("mail")
        put_model(tmp_path, "mail", tiny_with("-0.5"))  # one that is not loaded is found at once
        assert logprob_of_3((await folders.get("mail")).scorer) == pytest.approx(-0.5)
        damage(tmp_path / "ngram" / "mail")
        now_s[0] += CHECK_INTERVAL_S
        with pytest.raises(BrokenNgramModelError):
            await folders.get("mail")
        put_model(tmp_path, "mail", tiny_with("-0.6"))
        with pytest.raises(BrokenNgramModelError):
            await folders.get("mail")
        now_s[0] += CHECK_INTERVAL_S
        assert logprob_of_3((await folders.get("mail")).scorer) == pytest.approx(-0.6)

    run(scenario())


def test_a_new_manifest_of_the_same_binary_maps_nothing_anew(tmp_path, opened):
    put_model(tmp_path, "mail")
    folders = folders_in(tmp_path)

    async def scenario():
        scorer = (await folders.get("mail")).scorer
        put_model(tmp_path, "mail")
        assert (await folders.get("mail")).scorer is scorer

    run(scenario())
    assert opened == ["mail"]


def test_the_least_recently_used_is_dropped_but_not_from_those_who_use_it(tmp_path, opened):
    numbers = {"a": "-0.5", "b": "-0.6", "c": "-0.7"}
    for name, number in numbers.items():
        put_model(tmp_path, name, tiny_with(number))
    folders = folders_in(tmp_path, max_models=2)

    async def scenario():
        used = (await folders.get("a")).scorer
        for name in ("b", "a", "c"):
            await folders.get(name)
        assert [folders.is_loaded(name) for name in "abc"] == [True, False, True]
        await folders.get("b")
        gc.collect()
        assert not folders.is_loaded("a")
        assert logprob_of_3(used) == pytest.approx(-0.5)
        opened.clear()
        assert (await folders.get("a")).scorer is used  # still mapped: not mapped twice
        await folders.get("c")
        assert opened == ["c"]  # nobody used it, so it was closed

    run(scenario())


def test_the_first_model_is_never_dropped(tmp_path):
    for name in "abc":
        put_model(tmp_path, name, tiny_with(f"-0.{ord(name)}"))
    first = load_ngram_model("a", fingerprint=FINGERPRINT, home=tmp_path)
    folders = folders_in(tmp_path, max_models=1, first=first)

    async def scenario():
        for name in "bcb":
            await folders.get(name)
        assert (await folders.get("a")).scorer is first.scorer

    run(scenario())


def test_a_model_that_the_operator_named_by_path_has_a_name(tmp_path):
    folder = put_model(tmp_path / "elsewhere", "mine")
    folders = folders_in(tmp_path, paths={"mine": folder})

    async def scenario():
        assert (await folders.get("mine")).folder == folder
        assert "mine" in {model.name for model in await folders.listed()}

    run(scenario())


@pytest.mark.parametrize(
    "name", ["../mail", "/etc", "", ".", "..", "mail/", "./mail", "mail\0", "ngram/mail", ".hidden", "-x", "m" * 5000]
)
def test_a_name_is_never_taken_for_a_path(tmp_path, monkeypatch, name):
    put_model(tmp_path, "mail")
    put_model(tmp_path / "ngram", "mail")  # ngram/ngram/mail
    monkeypatch.chdir(tmp_path / "ngram")
    assert named_model_folder(name, tmp_path) is None
    with pytest.raises(NgramModelNotFoundError):
        run(folders_in(tmp_path).get(name))


def test_a_damaged_model_is_refused_without_reading_it_again_until_it_is_mended(tmp_path, opened):
    folder = put_model(tmp_path, "mail")
    damage(folder)
    folders = folders_in(tmp_path)

    async def scenario():
        for _ in range(3):
            with pytest.raises(BrokenNgramModelError):
                await folders.get("mail")
        assert opened == ["mail"]
        put_model(tmp_path, "mail")
        await folders.get("mail")
        (folder / BINARY_FILE).unlink()
        with pytest.raises(BrokenNgramModelError):
            await folders.get("mail")
        assert not folders.is_loaded("mail")

    run(scenario())


def test_a_folder_without_a_manifest_is_no_model(tmp_path):
    (put_model(tmp_path, "mail") / MANIFEST_FILE).unlink()
    with pytest.raises(NgramModelNotFoundError):
        run(folders_in(tmp_path).get("mail"))


def test_a_model_for_another_tokenizer_is_refused(tmp_path):
    put_model(tmp_path, "mail", tokenizer=OTHER_TOKENIZER)
    with pytest.raises(TokenizerMismatchError):
        run(folders_in(tmp_path).get("mail"))


def test_a_model_that_is_replaced_while_it_is_read_is_read_again(tmp_path, monkeypatch):
    put_model(tmp_path, "mail", tiny_with("-0.7"))
    plain, replaced = ngram_folders.open_scorer, []

    def slow(folder, manifest, **options):
        if not replaced:
            replaced.append(True)
            put_model(tmp_path, "mail", tiny_with("-0.4"))  # the manifest is the old one's, the binary the new one's
        return plain(folder, manifest, **options)

    monkeypatch.setattr(ngram_folders, "open_scorer", slow)
    assert logprob_of_3(run(folders_in(tmp_path).get("mail")).scorer) == pytest.approx(-0.4)


def test_a_model_that_is_away_for_a_moment_is_waited_for(tmp_path):
    put_model(tmp_path, "mail")
    folders = folders_in(tmp_path)

    async def scenario():
        await folders.get("mail")
        folder = (tmp_path / "ngram" / "mail").rename(tmp_path / "ngram" / ".away")
        asyncio.get_running_loop().call_later(0.002, folder.rename, tmp_path / "ngram" / "mail")
        await folders.get("mail")

    run(scenario())


def test_loading_blocks_neither_the_loop_nor_those_who_have_theirs(tmp_path, monkeypatch):
    put_model(tmp_path, "slow", tiny_with("-0.6"))
    put_model(tmp_path, "fast")
    plain, go_on, threads = ngram_folders.open_scorer, threading.Event(), []

    def gated(folder, manifest, **options):
        threads.append(threading.current_thread())
        if folder.name == "slow":
            assert go_on.wait(PATIENCE_S)
        return plain(folder, manifest, **options)

    monkeypatch.setattr(ngram_folders, "open_scorer", gated)
    folders = folders_in(tmp_path)

    async def scenario():
        await folders.get("fast")
        waiting = [asyncio.create_task(folders.get("slow")) for _ in range(2)]
        await until(lambda: len(threads) == 2)
        for _ in range(20):
            await folders.get("fast")  # behind the slow one it would not come
        waiting[0].cancel()  # its client went away; the other one still wants the model
        await asyncio.sleep(0)
        go_on.set()
        assert logprob_of_3((await waiting[1]).scorer) == pytest.approx(-0.6)

    run(scenario())
    assert threading.main_thread() not in threads


# What a request's choice becomes


def models_in(home):
    return NgramModels(folders_in(home))


def test_a_choice_becomes_a_model_or_a_mixture(tmp_path):
    put_model(tmp_path, "a", tiny_with("-0.5"))
    put_model(tmp_path, "b", tiny_with("-0.9"))
    models = models_in(tmp_path)

    async def scenario():
        assert await models.choose(None) is None
        alone = await models.choose("a")
        assert await models.choose({"a": 0.2}) is alone
        mixture = await models.choose({"a": 3, "b": 1})
        assert isinstance(mixture, MixtureScorer)
        assert 10 ** logprob_of_3(mixture) == pytest.approx(0.75 * 10**-0.5 + 0.25 * 10**-0.9)

    run(scenario())


@pytest.mark.parametrize("choice", ["c", {"a": 1, "c": 1}, "../a", "b/../a", "in_context", ""])
def test_a_name_that_is_not_there_is_not_found_and_the_others_are_told(tmp_path, choice):
    put_model(tmp_path, "a")
    with pytest.raises(NotFoundError, match=r"known: a, ") as caught:
        run(models_in(tmp_path).choose(choice))
    assert caught.value.code == "ngram_model_not_found"


def test_errors_of_a_model_have_codes_and_show_no_paths(tmp_path):
    damage(put_model(tmp_path, "torn"))
    put_model(tmp_path, "foreign", tokenizer=OTHER_TOKENIZER)
    models = models_in(tmp_path)
    for name, code in (("torn", "ngram_model_damaged"), ("foreign", "ngram_model_wrong_tokenizer")):
        with pytest.raises(InvalidRequestError, match=name) as caught:
            run(models.choose({name: 1}))
        assert (caught.value.code, caught.value.param) == (code, "ngram_model")
        assert str(tmp_path) not in str(caught.value)


def test_a_mixture_of_too_many_models_is_refused(tmp_path):
    with pytest.raises(InvalidRequestError, match=r"8 models at most, got 9"):
        run(models_in(tmp_path).choose({f"m{i}": 1 for i in range(9)}))


def test_the_default_is_replaced_and_outlives_its_files(tmp_path):
    put_model(tmp_path, "a", tiny_with("-0.7"))
    first = load_ngram_model("a", fingerprint=FINGERPRINT, home=tmp_path)
    models = NgramModels(folders_in(tmp_path, first=first))

    async def scenario():
        assert await models.current_default() is models.default_scorer is first.scorer
        put_model(tmp_path, "a", tiny_with("-0.4"))
        assert logprob_of_3(await models.current_default()) == pytest.approx(-0.4)
        damage(tmp_path / "ngram" / "a")
        assert logprob_of_3(await models.current_default()) == pytest.approx(-0.4)
        shutil.rmtree(tmp_path / "ngram" / "a")
        assert logprob_of_3(await models.current_default()) == pytest.approx(-0.4)
        put_model(tmp_path, "a", tiny_with("-0.3"))
        assert logprob_of_3(await models.current_default()) == pytest.approx(-0.3)

    run(scenario())
