"""Shards: together they are the whole suite, they do not overlap, and none is much costlier than the others."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from timmgate.config import shards
from timmgate.core.errors import ConfigError

COSTS = st.dictionaries(st.text("abc_1", min_size=1, max_size=5), st.floats(0.01, 1000), min_size=1, max_size=40)
PARTS = st.integers(1, 12)


@given(COSTS, PARTS)
def test_every_model_is_in_exactly_one_shard(cost, parts):
    divided = shards.divide(cost, parts)
    assert len(divided) == parts
    assert sorted(name for shard in divided for name in shard) == sorted(cost)


@given(COSTS, PARTS, st.randoms(use_true_random=False))
def test_the_order_of_the_models_does_not_matter(cost, parts, random):
    shuffled = list(cost.items())
    random.shuffle(shuffled)
    assert shards.divide(dict(shuffled), parts) == shards.divide(cost, parts)


@given(COSTS, PARTS)
def test_no_shard_is_costlier_than_the_mean_plus_the_costliest_model(cost, parts):
    heaviest = max(sum(cost[name] for name in shard) for shard in shards.divide(cost, parts))
    assert heaviest <= (sum(cost.values()) / parts + max(cost.values())) * (1 + 1e-9)


@given(COSTS, PARTS)
def test_a_shard_is_empty_only_if_there_are_fewer_models_than_shards(cost, parts):
    assert sum(1 for shard in shards.divide(cost, parts) if shard) == min(parts, len(cost))


def test_one_costly_model_is_weighed_against_many_cheap_ones():
    cost = {"giant": 6.0, **{f"small{number}": 1.0 for number in range(6)}}
    assert shards.divide(cost, 2) == [["giant"], sorted(cost)[1:]]


def test_models_of_equal_cost_go_round_by_name():
    assert shards.divide(dict.fromkeys("fedcba", 1.0), 3) == [["a", "d"], ["b", "e"], ["c", "f"]]


def test_the_selected_shard_keeps_the_order_and_the_traits_of_the_suite():
    models = {"d": 4, "c": 3, "b": 2, "a": 1}
    assert list(shards.select(models, {}, (1, 2)).items()) == [("c", 3), ("a", 1)]


def test_a_model_without_a_cost_counts_as_one():
    assert shards.select({"a": 0, "b": 0, "c": 0}, {"c": 2.0}, (1, 2)) == {"c": 0}


def test_without_a_shard_everything_is_selected():
    assert shards.select({"a": 0, "b": 0}, {}, None) == {"a": 0, "b": 0}


def test_an_empty_shard_is_refused_and_a_full_one_beside_it_is_not():
    models = {"a": 0, "b": 0}
    assert shards.select(models, {}, (2, 3)) == {"b": 0}
    with pytest.raises(ConfigError, match=r"^shard: nothing is left for 3/3, for the selected models number only 2$"):
        shards.select(models, {}, (3, 3))


def test_more_shards_than_models_take_no_memory():
    models = {"a": 1, "b": 2}
    assert shards.select(models, {}, (2, 10**12)) == {"b": 2}
    with pytest.raises(ConfigError, match="nothing is left for 3/1000000000000"):
        shards.select(models, {}, (3, 10**12))
