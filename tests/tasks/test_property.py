"""Whatever is edited in whatever graph: exactly what changed and what lies below changed bytes runs again."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from storage.artifact import Artifact
from storage.store import Store
from tasks.recording import NoRecorder
from tasks.reporting import Silent
from tasks.runtime import Runtime
from tasks.stage import Context, Stage, Work, run_stage, stage

SMALL = st.integers(0, 3)


class Number(Artifact):
    kind = "Number"

    def read(self) -> int:
        return int(self.folder.read("number.txt"))


class ReadConfig(BaseModel, frozen=True, extra="forbid"):
    source: str
    scale: int


class MixConfig(BaseModel, frozen=True, extra="forbid"):
    value: int


@dataclass(frozen=True)
class Step:
    """A step of a random graph.

    Attributes:
        mixes: whether it is a `add` or a `multiply` of earlier steps, or (None) reads a source.
        value: its config.
        inputs: numbers of the earlier steps that it takes.
    """

    mixes: str | None
    value: int
    inputs: tuple[int, ...] = ()


def read_result(content: int, scale: int) -> int:
    """Half of it is thrown away, so that some edits of a source leave the bytes below it equal."""
    return (content // 2) * (1 + scale % 2)


def mix_result(mixes: str, value: int, inputs: tuple[int, ...]) -> int:
    """A remainder, so that some edits of a config leave the result equal."""
    if mixes == "add":
        return (sum(inputs) + value) % 3
    product = 1 + value % 2
    for number in inputs:
        product *= number
    return product % 5


class Graph:
    """The engine under test: runs steps in a store, and says which of them were computed."""

    def __init__(self, folder: Path) -> None:
        runtime = Runtime(home=folder, device="cpu")
        self._context = Context(runtime, Store(runtime.store_root), NoRecorder(), Silent())
        self._sources: dict[str, int] = {}
        self._stages = {None: self._read(), "add": self._mix("add"), "multiply": self._mix("multiply")}

    def run(self, steps: list[Step], sources: dict[str, int]) -> tuple[list[int], set[int]]:
        """Give the number of each step, and which steps were computed."""
        self._sources = sources
        artifacts: list[Number] = []
        computed = set()
        for number, step in enumerate(steps):
            result = run_stage(
                self._stages[step.mixes],
                self._config(number, step),
                inputs={f"input_{place}": artifacts[given] for place, given in enumerate(step.inputs)},
                context=self._context,
                step=f"step_{number}",
            )
            artifacts.append(result.artifact)
            if not result.reused:
                computed.add(number)
        return [artifact.read() for artifact in artifacts], computed

    def _config(self, number: int, step: Step) -> BaseModel:
        return (
            ReadConfig(source=f"source_{number}", scale=step.value)
            if step.mixes is None
            else MixConfig(value=step.value)
        )

    def _read(self) -> Stage[Any, Number]:
        def digest(config: ReadConfig, _runtime: Runtime) -> Mapping[str, str]:
            return {"source": str(self._sources[config.source])}

        @stage(produces=Number, version=1, ingredients=digest)
        def read(config: ReadConfig, work: Work) -> None:
            content = self._sources[config.source]
            work.data.write("number.txt", str(read_result(content, config.scale)).encode())

        return read

    def _mix(self, mixes: str) -> Stage[Any, Number]:
        def body(config: MixConfig, work: Work, **inputs: Number) -> None:
            result = mix_result(mixes, config.value, tuple(given.read() for given in inputs.values()))
            work.data.write("number.txt", str(result).encode())

        body.__name__ = mixes
        return stage(produces=Number, version=1)(body)


class Oracle:
    """What must happen, said without keys: a step is computed when nobody computed the like of it before."""

    def __init__(self) -> None:
        self._seen: set[tuple[Any, ...]] = set()

    def run(self, steps: list[Step], sources: dict[str, int]) -> tuple[list[int], set[int]]:
        results: list[int] = []
        computed = set()
        for number, step in enumerate(steps):
            inputs = tuple(results[given] for given in step.inputs)
            if step.mixes is None:
                content = sources[f"source_{number}"]
                like: tuple[Any, ...] = ("read", number, step.value, content)
                results.append(read_result(content, step.value))
            else:
                like = (step.mixes, step.value, inputs)
                results.append(mix_result(step.mixes, step.value, inputs))
            if like not in self._seen:
                computed.add(number)
            self._seen.add(like)
        return results, computed


@st.composite
def graphs(draw: st.DrawFn) -> list[Step]:
    steps = [Step(None, draw(SMALL))]
    for number in range(1, draw(st.integers(2, 7))):
        mixes = draw(st.sampled_from([None, "add", "add", "multiply", "multiply"]))
        inputs = draw(st.lists(st.integers(0, number - 1), min_size=1, max_size=3)) if mixes else []
        steps.append(Step(mixes, draw(SMALL), tuple(inputs)))
    return steps


def edited(
    steps: list[Step], sources: dict[str, int], edit: tuple[int, bool, int]
) -> tuple[list[Step], dict[str, int]]:
    """Change the config of a step, or the bytes of its source."""
    place, of_source, value = edit
    number = place % len(steps)
    if of_source and steps[number].mixes is None:
        return steps, {**sources, f"source_{number}": value}
    return [*steps[:number], replace(steps[number], value=value), *steps[number + 1 :]], sources


@settings(derandomize=True, deadline=None, max_examples=40)
@given(graphs(), st.lists(st.tuples(st.integers(0, 20), st.booleans(), SMALL), min_size=1, max_size=4))
def test_exactly_what_changed_and_what_lies_below_changed_bytes_runs_again(
    steps: list[Step], edits: list[tuple[int, bool, int]]
) -> None:
    sources = {f"source_{number}": number % 4 for number in range(len(steps))}
    oracle = Oracle()
    # Thousands of small files: that they reach the disk is tested elsewhere.
    with tempfile.TemporaryDirectory() as folder, patch("os.fsync"):
        graph = Graph(Path(folder))
        assert graph.run(steps, sources) == oracle.run(steps, sources)
        for edit in edits:
            steps, sources = edited(steps, sources, edit)
            assert graph.run(steps, sources) == oracle.run(steps, sources)
            assert graph.run(steps, sources)[1] == set()


def test_the_graphs_hold_what_the_property_is_about() -> None:
    """Some edits change nothing below, some change all of it: otherwise the property says little."""
    chain = [Step(None, 0), Step("add", 1, (0,)), Step("multiply", 0, (1,))]
    sources = {"source_0": 2, "source_1": 0, "source_2": 0}
    with tempfile.TemporaryDirectory() as folder, patch("os.fsync"):
        graph = Graph(Path(folder))
        assert graph.run(chain, sources) == ([1, 2, 2], {0, 1, 2})
        # Another source with equal bytes below.
        assert graph.run(chain, {**sources, "source_0": 3}) == ([1, 2, 2], {0})
        # Another config with an equal result.
        steps = [chain[0], replace(chain[1], value=4), chain[2]]
        assert graph.run(steps, sources) == ([1, 2, 2], {1})
        # Bytes that differ all the way down.
        assert graph.run(chain, {**sources, "source_0": 0}) == ([0, 1, 1], {0, 1, 2})
        # And back: all of it is still there.
        assert graph.run(chain, sources) == ([1, 2, 2], set())
