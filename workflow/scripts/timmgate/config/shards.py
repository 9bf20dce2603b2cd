"""A suite in parts that cost about the same, so that several machines can share it."""

from typing import TypeVar

from timmgate.core.errors import ConfigError

T = TypeVar("T")


def select(models: dict[str, T], cost: dict[str, float], shard: tuple[int, int] | None) -> dict[str, T]:
    """The models of one shard, (3, 8) for the third of eight, in their order; all of them if it is None.

    `cost` is 1 for a model that is not in it. Raises ConfigError if the shard is empty.
    """
    if shard is None:
        return models
    part, parts = shard
    shards = divide({model: cost.get(model, 1.0) for model in models}, min(parts, len(models)))
    chosen = set(shards[part - 1]) if part <= len(shards) else set()
    if not chosen:
        raise ConfigError(f"shard: nothing is left for {part}/{parts}, for the selected models number only {len(models)}")
    return {model: value for model, value in models.items() if model in chosen}


def divide(cost: dict[str, float], parts: int) -> list[list[str]]:
    """Every name in one of `parts` lists: the costliest first, each into the list that is the lightest so far.

    Equal costs go by name, equal lists by position, so that the order of `cost` does not matter. No list is costlier than
    the mean plus the costliest item.
    """
    shards: list[list[str]] = [[] for _ in range(parts)]
    loads = [0.0] * parts
    for name in sorted(cost, key=lambda name: (-cost[name], name)):
        lightest = loads.index(min(loads))
        shards[lightest].append(name)
        loads[lightest] += cost[name]
    return shards
