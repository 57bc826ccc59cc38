"""What `graft data` shows: the datasets of a recipe, as the pipeline will see them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich.console import Console

from flows.pipeline import RunRequest, open_pipeline
from flows.terminal import TerminalReporter
from storage.dataset_index import DatasetIndex
from tasks.inspect_data import class_counts, draw_contact_sheet, size_quantiles
from tasks.runtime import Runtime

# Of a dataset of thousands of classes, the largest and the smallest are shown.
CLASSES_SHOWN = 20
INDEX_STEPS = frozenset({"index_*"})


def show_datasets(request: RunRequest, *, runtime: Runtime, console: Console) -> None:
    """Index the datasets that are not indexed yet, and print what is in each.

    Raises:
        ValueError: a dataset is missing, or more of it is unreadable than the recipe allows.
    """
    request = request.model_copy(update={"only": INDEX_STEPS})
    steps = open_pipeline(request, runtime=runtime, record=False).plan().steps
    with TerminalReporter(console, total_steps=sum(map(request.selection.wants, steps))) as reporter:
        pipeline = open_pipeline(request, runtime=runtime, reporter=reporter, record=False)
        results = pipeline.run(on_start=reporter.start, on_done=reporter.done)
    users: dict[str, list[str]] = {}
    for step, result in results.items():
        users.setdefault(result.artifact.key, []).append(step.removeprefix("index_"))
    indices: Mapping[str, DatasetIndex] = {result.artifact.key: result.artifact for result in results.values()}
    for key, index in indices.items():
        sheet = draw_contact_sheet(index, runtime=runtime)
        for line in ("", *_lines(index, users=users[key]), f"  contact sheet: {sheet}"):
            console.print(line, soft_wrap=True, highlight=False, markup=False)


def _lines(index: DatasetIndex, *, users: list[str]) -> Iterator[str]:
    source = index.source
    part = f", split {source.split}" if source.split else ""
    if source.fraction is not None:
        part += f", from {source.fraction.start:g} to {source.fraction.stop:g} (seed {source.fraction.seed})"
    yield f"{index.name}: {source.format}{part}; used as {', '.join(users)}"
    sizes = size_quantiles(index)
    yield f"  images: {index.num_rows:,}, {index.sizes()['size'].sum() / 2**20:,.1f} MiB"
    for name, unit in (("width", "pixels"), ("height", "pixels"), ("size", "bytes")):
        yield f"  {name}: {sizes[name].smallest:,} to {sizes[name].largest:,} {unit} (median {sizes[name].median:,})"
    yield from _class_lines(class_counts(index), annotated=index.annotated)
    repeats = index.repeats
    yield (
        f"  repeats: {repeats.rows:,} rows repeat an earlier one; {repeats.across_splits:,} images lie in several "
        f"splits, {repeats.under_two_labels:,} under several labels"
    )
    quarantine = index.quarantine()
    yield f"  unreadable: {len(quarantine):,}" + (", left out:" if quarantine else "")
    for name, reason in sorted(quarantine.items()):
        yield f"    {name if name.isprintable() else ascii(name)}: {reason}"


def _class_lines(counts: dict[str, int], *, annotated: bool) -> Iterator[str]:
    if not counts:
        yield "  classes: none"
        return
    names = list(counts)
    several = "; an image may show several" if annotated else ""
    most, fewest = (f"{counts[name]:,} images ({name})" for name in (names[0], names[-1]))
    yield f"  classes: {len(names):,}, from {most} to {fewest}{several}"
    left_out = max(0, len(names) - CLASSES_SHOWN)
    half = CLASSES_SHOWN // 2
    for name in names if not left_out else names[:half]:
        yield f"    {counts[name]:>9,}  {name}"
    if left_out:
        yield f"    {'...':>9}  {left_out:,} more"
        for name in names[-half:]:
            yield f"    {counts[name]:>9,}  {name}"
