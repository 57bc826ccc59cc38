"""Tables: equal columns are equal bytes, and damage is named instead of returned."""

import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage import tables
from storage.errors import CorruptFile
from storage.folder import Folder
from storage.tables import read_table, table_bytes, text_column

ROWS = 40


def columns() -> dict[str, np.ndarray]:
    # No two values are equal, so that they lie in the pages themselves and not in a dictionary's few bytes.
    return {
        "row_id": text_column(f"{number:032x}" for number in range(ROWS)),
        "label": np.arange(ROWS, dtype=np.int32) - 1,
        "distance": np.linspace(0, 1, ROWS, dtype=np.float32),
        "correct": np.arange(ROWS) % 3 == 0,
    }


@pytest.fixture
def folder(tmp_path) -> Folder:
    kept = Folder(tmp_path)
    kept.write("labels.parquet", table_bytes(columns(), metadata={"version": "1"}))
    return kept


def test_what_is_read_is_what_was_written(folder):
    table = read_table(folder, "labels.parquet")
    assert list(table) == list(columns())
    for name, values in columns().items():
        assert np.array_equal(table[name], values)
    assert table["label"].dtype == np.int32 and table["distance"].dtype == np.float32


def test_only_the_columns_asked_for_are_read(folder):
    assert list(read_table(folder, "labels.parquet", columns=["distance", "row_id"])) == [
        "distance",
        "row_id",
    ]


def test_equal_columns_give_equal_bytes():
    assert table_bytes(columns()) == table_bytes(columns())
    changed = columns() | {"label": np.zeros(ROWS, dtype=np.int32)}
    assert table_bytes(columns()) != table_bytes(changed)
    assert table_bytes(columns()) != table_bytes(columns(), metadata={"version": "2"})


def test_no_rows_are_a_table_too(folder):
    folder.write("empty.parquet", table_bytes({"label": np.array([], dtype=np.int32)}))
    table = read_table(folder, "empty.parquet")
    assert table["label"].shape == (0,) and table["label"].dtype == np.int32


TEXTS = [
    [],
    [""],
    ["", "", ""],
    ["a", "", "bcd", "é", "日本語", "a b\nc", ""],
    [f"{number:032x}" for number in range(50)],
    ["x" * number for number in range(50)],
]


@pytest.mark.parametrize("texts", TEXTS)
def test_text_is_read_as_utf_8_bytes_of_one_width(folder, texts):
    folder.write("text.parquet", table_bytes({"text": text_column(texts)}))
    column = read_table(folder, "text.parquet")["text"]
    assert column.dtype == f"S{max([1, *(len(text.encode()) for text in texts)])}"
    assert [text.decode() for text in column] == texts


def test_text_in_many_row_groups_and_parts_is_whole(folder, monkeypatch):
    monkeypatch.setattr(tables, "TEXT_ROWS", 3)
    texts = ["é" * (number % 5) + str(number) for number in range(100)]
    pq.write_table(pa.table({"text": texts}), folder.path / "text.parquet", row_group_size=7)
    assert [text.decode() for text in read_table(folder, "text.parquet")["text"]] == texts


@pytest.mark.parametrize("texts", TEXTS)
def test_text_lies_in_a_file_as_a_string_however_it_came(folder, texts):
    data = table_bytes({"text": text_column(texts)})
    assert data == table_bytes({"text": np.array(texts, dtype=str)})
    folder.write("text.parquet", data)
    assert pq.read_schema(folder.path / "text.parquet").field("text").type == pa.string()


def test_a_changed_byte_of_any_page_is_named(folder):
    path = folder.path / "labels.parquet"
    whole = path.read_bytes()
    footer_bytes = struct.unpack("<i", whole[-8:-4])[0]
    pages = range(4, len(whole) - 8 - footer_bytes)
    assert len(pages) > 500
    for place in pages[::7]:
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        try:
            table = read_table(folder, "labels.parquet")
        except CorruptFile as error:
            assert str(path) in str(error)
        else:
            # Some bytes of a page's header say nothing of the values.
            assert all(np.array_equal(table[name], values) for name, values in columns().items()), place


def test_a_changed_value_fails_its_page_checksum(tmp_path):
    folder = Folder(tmp_path)
    # Numbers that nothing compresses lie in the file as they are.
    values = np.random.default_rng(0).integers(0, 2**62, 1000)
    folder.write("numbers.parquet", table_bytes({"number": values}))
    whole = (tmp_path / "numbers.parquet").read_bytes()
    place = whole.index(values[500].tobytes())
    (tmp_path / "numbers.parquet").write_bytes(whole[:place] + b"\x00" + whole[place + 1 :])
    with pytest.raises(CorruptFile, match=r"numbers\.parquet must be an intact Parquet file: .*(CRC|checksum)"):
        read_table(folder, "numbers.parquet")


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99])
def test_a_file_cut_short_is_named(folder, share):
    path = folder.path / "labels.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CorruptFile, match=r"labels\.parquet must be an intact Parquet file"):
        read_table(folder, "labels.parquet")


def test_a_missing_file_is_named(folder):
    with pytest.raises(CorruptFile, match=r"gone\.parquet"):
        read_table(folder, "gone.parquet")
