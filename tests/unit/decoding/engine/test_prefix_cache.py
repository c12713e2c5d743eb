"""The prefix cache, compared with a brute-force model."""

from hypothesis import given
from hypothesis import strategies as st

from superdraft.decoding.engine.prefix_cache import PrefixCache

prompts = st.lists(
    st.tuples(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.sampled_from(["", "ann", "bob"])), max_size=40
)


def keep(cache: PrefixCache, pool: dict[int, tuple[str, tuple[int, ...]]], tokens: list[int], isolation: str) -> None:
    """Insert, and note for each position which prefix it stands for, as the tensors would."""
    start, positions = cache.insert(tokens, isolation)
    for offset, position in enumerate(positions):
        pool[position] = (isolation, tuple(tokens[: start + offset + 1]))


@given(prompts, st.integers(0, 25))
def test_positions_hold_the_tokens_that_they_are_found_for(sequences, size):
    cache, pool = PrefixCache(size), {}
    for tokens, who in sequences:
        found = cache.match(tokens, who)
        assert [pool[position] for position in found] == [(who, tuple(tokens[: i + 1])) for i in range(len(found))]
        keep(cache, pool, tokens, who)
        assert all(0 <= position < size for position in pool)
        # A prompt that was just kept is found completely, or as far as it fits in the pool.
        assert len(cache.match(tokens, who)) == min(len(tokens), size)


@given(prompts)
def test_with_room_for_all_the_longest_common_prefix_is_found(sequences):
    cache, pool = PrefixCache(1000), {}
    seen: dict[str, list[list[int]]] = {"": [], "ann": [], "bob": []}
    for tokens, who in sequences:
        longest = max(
            (i for other in seen[who] for i in range(len(tokens) + 1) if tokens[:i] == other[:i] and i <= len(other)),
            default=0,
        )
        assert len(cache.match(tokens, who)) == longest
        keep(cache, pool, tokens, who)
        seen[who].append(tokens)


def test_the_least_recently_used_tokens_leave_first_and_from_the_end():
    cache = PrefixCache(6)
    cache.insert([1, 2, 3], "")
    cache.insert([7, 8], "")
    assert cache.match([1], "") == [0]  # 1 is used again, 2 and 3 are not
    cache.insert([9, 9, 9], "")  # one position is free, two must go: 3, then 2
    assert len(cache.match([1, 2, 3], "")) == 1
    assert len(cache.match([7, 8], "")) == 2


def test_only_the_new_tokens_of_a_grown_prompt_are_written():
    cache = PrefixCache(10)
    assert cache.insert([1, 2, 3], "") == (0, [0, 1, 2])
    assert cache.insert([1, 2, 3, 4], "") == (3, [3])
    assert cache.insert([1, 2], "") == (2, [])


def test_a_cleared_cache_is_empty_and_has_all_its_room():
    cache = PrefixCache(3)
    cache.insert([1, 2, 3], "")
    cache.clear()
    assert cache.match([1, 2, 3], "") == []
    start, positions = cache.insert([4, 5, 6], "")
    assert (start, sorted(positions)) == (0, [0, 1, 2])
    assert cache.match([4, 5, 6], "") == positions


def test_an_empty_pool_keeps_nothing():
    cache = PrefixCache(0)
    assert cache.insert([1, 2], "") == (0, [])
    assert cache.match([1, 2], "") == []
