"""The ledger: a committed unit is never done again, unless what it made is gone."""

import pytest

from storage.folder import FileRecord, Folder
from storage.ledger import Ledger


@pytest.fixture
def data(tmp_path) -> Folder:
    return Folder(tmp_path / "data")


@pytest.fixture
def open_ledger(tmp_path, data):
    return lambda: Ledger(Folder(tmp_path / "ledger"), data=data)


def test_a_committed_unit_is_known_to_the_next_process(open_ledger, data):
    ledger = open_ledger()
    records = [data.write("conv4/c/0/0", b"rows"), data.write("conv5/c/0/0", b"more rows")]
    ledger.commit("0", records=records, sizes=[3, 1], last=None)
    for known in (ledger, open_ledger()):
        assert "0" in known and "1" not in known and len(known) == 1
        assert known.facts("0") == {"sizes": [3, 1], "last": None}
        assert known.records() == {record.path: record for record in records}
        assert all(isinstance(record, FileRecord) for record in known.records().values())


def test_a_unit_may_make_no_file(open_ledger):
    open_ledger().commit("entries-000000", records=[])
    assert "entries-000000" in open_ledger() and open_ledger().records() == {}


def test_facts_of_a_unit_that_is_not_committed_are_an_error(open_ledger):
    with pytest.raises(KeyError):
        open_ledger().facts("0")


def test_a_second_commit_takes_the_place_of_the_first(open_ledger, data):
    ledger = open_ledger()
    ledger.commit("0", records=[data.write("a", b"1")], step=1)
    second = data.write("a", b"22")
    ledger.commit("0", records=[second], step=2)
    assert open_ledger().facts("0") == {"step": 2} and open_ledger().records() == {"a": second}


def test_an_entry_that_cannot_be_read_is_a_unit_not_done(open_ledger, data, tmp_path):
    ledger = open_ledger()
    for unit in ("0", "1"):
        ledger.commit(unit, records=[data.write(unit, b"rows")])
    (tmp_path / "ledger" / "0.json").write_bytes(b'{"files": [')
    assert "0" not in open_ledger() and "1" in open_ledger()


@pytest.mark.parametrize("damage", ["missing", "short", "another folder"])
def test_a_unit_whose_file_is_gone_is_not_done(open_ledger, data, tmp_path, damage):
    ledger = open_ledger()
    ledger.commit("0", records=[data.write("a", b"rows"), data.write("b", b"rows")])
    ledger.commit("1", records=[data.write("c", b"rows")])
    if damage == "missing":
        data.remove("b")
    elif damage == "short":
        data.write("b", b"ro")
    else:
        # The scratch of an older attempt: what it lists was never written to this one.
        other = Ledger(Folder(tmp_path / "ledger"), data=Folder(tmp_path / "other"))
        assert len(other) == 0 and other.records() == {}
        return
    assert "0" not in open_ledger() and "1" in open_ledger()
    assert list(open_ledger().records()) == ["c"]


def test_a_commit_that_is_interrupted_is_no_commit(open_ledger, monkeypatch, tmp_path):
    ledger = open_ledger()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ledger.commit("0", records=[])
    assert "0" not in ledger and "0" not in open_ledger()
