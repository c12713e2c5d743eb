import hashlib

from superdraft.ngram_models.vocabulary import WordTable, split_at_end_of_text, tokenizer_fingerprint


def test_words_are_decimal_ids_and_end_of_text_ids_are_one_word():
    words = WordTable(5, end_of_text_ids=(0, 3))
    assert [words[i] for i in range(5)] == ["</s>", "1", "2", "</s>", "4"]


def test_ids_outside_the_vocabulary_are_unknown():
    words = WordTable(5, end_of_text_ids=(0,))
    assert (words[5], words[-1], len(words)) == ("<unk>", "<unk>", 5)


def test_fingerprint_is_the_hash_of_the_sorted_map():
    assert tokenizer_fingerprint({"é": 1, "a": 0}) == hashlib.sha256(b'[["a",0],["\\u00e9",1]]').hexdigest()


def test_fingerprint_depends_on_the_map_and_not_on_its_order():
    reference = tokenizer_fingerprint({"a": 0, "b": 1, "c": 2})
    assert tokenizer_fingerprint({"c": 2, "a": 0, "b": 1}) == reference
    assert tokenizer_fingerprint({"a": 1, "b": 0, "c": 2}) != reference
    assert tokenizer_fingerprint({"a": 0, "b": 1}) != reference
    # A separator inside a token must not make two maps look the same.
    assert tokenizer_fingerprint({'a",0],["b': 1}) != tokenizer_fingerprint({"a": 0, "b": 1})


def test_texts_are_split_at_every_end_of_text():
    texts = split_at_end_of_text([0, 5, 6, 2, 0, 7, 0, 8], end_of_text_ids={0, 2})
    assert list(texts) == [([5, 6], True), ([7], True), ([8], False)]


def test_ends_of_text_alone_contain_no_text():
    assert list(split_at_end_of_text([0, 2, 0], end_of_text_ids={0, 2})) == []
