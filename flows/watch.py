"""New data in a recipe's datasets: seen, waited for until it changes no more, and told of once."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from flows.knowledge_transfer import knowledge_transfer
from flows.pipeline import open_store
from flows.recipe import Recipe, load_recipe
from storage.errors import CorruptFile
from storage.folder import canonical_json
from storage.store import Store
from tasks.index_dataset import IndexDatasetConfig, source_digests
from tasks.runtime import Runtime
from tasks.stage import Stage

WATCH = "watch"


class DataUnreadable(RuntimeError):
    """A dataset cannot be looked at; nothing was told, and what was seen before stands."""


class Seen(BaseModel):
    """What is remembered of a recipe's datasets: step -> digest.

    Attributes:
        last: at the last look.
        told: when it was last told of, or at the first look.
        number: how often it was told of.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    last: dict[str, str]
    told: dict[str, str]
    number: int = 0


class Change(NamedTuple):
    """Something new; `id` is the same however often the same change is told of."""

    id: uuid.UUID
    steps: list[str]


class Look(NamedTuple):
    """What a look found: `first` (nothing to compare with), `same`, `moving` (new, and not stable yet) or `changed`."""

    state: Literal["first", "same", "moving", "changed"]
    steps: list[str]


def look_at_data(recipe: str, tell: Callable[[Change], None], *, runtime: Runtime) -> Look:
    """Look at the datasets of a recipe, and tell of what is new once it is the same in two looks.

    Args:
        tell: told of a change before it counts as told: who is killed in between tells it again, with the same id.
    Raises:
        DataUnreadable: names the datasets and what is wrong with them.
        TimeoutError: another process looks at this moment.
    """
    now = _digests(load_recipe(recipe), runtime)
    store = open_store(runtime)
    # One memory a recipe, as it was given: two files may bear one name.
    name = hashlib.sha256(recipe.encode()).hexdigest()[:32]
    with store.lease(f"{WATCH}-{name}", wait=0):
        return _compare(_Memory(store, f"{name}.json"), now, recipe, tell)


def _compare(memory: _Memory, now: dict[str, str], recipe: str, tell: Callable[[Change], None]) -> Look:
    seen = memory.read()
    if seen is None:
        memory.write(Seen(last=now, told=now))
        return Look("first", [])
    steps = sorted(step for step in {*now, *seen.told} if now.get(step) != seen.told.get(step))
    if not steps or now != seen.last:
        memory.write(seen.model_copy(update={"last": now}))
        return Look("moving" if steps else "same", steps)
    number = seen.number + 1
    tell(Change(uuid.uuid5(uuid.NAMESPACE_OID, canonical_json([recipe, number, now]).decode()), steps))
    memory.write(Seen(last=now, told=now, number=number))
    return Look("changed", steps)


class _Memory:
    """What was seen, in the store, which all workers share."""

    def __init__(self, store: Store, name: str) -> None:
        self._folder = store.folder / WATCH
        self._name = name

    def read(self) -> Seen | None:
        try:
            return Seen.model_validate(self._folder.read_json(self._name))
        except (FileNotFoundError, CorruptFile):
            return None

    def write(self, seen: Seen) -> None:
        self._folder.write_json(self._name, seen.model_dump())


def _digests(recipe: Recipe, runtime: Runtime) -> dict[str, str]:
    """Step -> digest of its dataset as it is now; reads only files that changed since they were last read."""
    digests: dict[str, str] = {}
    problems: dict[str, str] = {}
    for step, config in _datasets(recipe).items():
        try:
            digests[step] = source_digests(config, runtime)["source"]
        except (ValueError, OSError) as error:
            problems[step] = str(error)
    if problems:
        raise DataUnreadable("; ".join(f"{step}: {problem}" for step, problem in problems.items()))
    return digests


def _datasets(recipe: Recipe) -> Mapping[str, IndexDatasetConfig]:
    """The steps that list a dataset."""
    found: dict[str, IndexDatasetConfig] = {}

    def run(step: str, stage: Stage[Any, Any], config: BaseModel, /, **_inputs: Any) -> None:
        if isinstance(config, IndexDatasetConfig):
            found[step] = config

    knowledge_transfer(recipe, run)
    return found
