"""What docs/datasets.md says of formats holds."""

from pathlib import Path

import yaml

from storage.datasets.source import formats
from storage.images import MAX_PIXELS
from tasks.index_dataset import IndexDatasetConfig

PAGE = Path(__file__).parents[3] / "docs" / "datasets.md"


def test_every_example_is_a_dataset_and_every_format_has_one():
    block = PAGE.read_text().split("```yaml\n")[1].split("```")[0]
    examples = [IndexDatasetConfig.model_validate(one) for one in yaml.safe_load(block)]
    assert sorted({example.format for example in examples}) == formats()
    assert len(examples) == len(block.splitlines())
    assert [line for line in block.splitlines() if " # " not in line] == []


def test_every_format_has_a_row_in_the_table():
    rows = [line.split("`")[1] for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    assert sorted(rows) == formats()


def test_the_limit_is_the_one_that_the_page_names():
    assert f"{MAX_PIXELS:,} pixels" in PAGE.read_text()
