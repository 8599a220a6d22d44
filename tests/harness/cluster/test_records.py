"""Whose submissions a sweep's folder has."""

import json
from pathlib import Path

import pytest

from harness.base.errors import UserError
from harness.base.files import read_json, write_json
from harness.cluster.records import NotYours, new_record, read_records
from tests.commands import as_nobody, open_folder


def test_a_record_is_from_its_folder_by_whatever_path_and_from_any_once_that_is_gone(
    tmp_path: Path,
) -> None:
    home, other, link = (tmp_path / name for name in ("home", "other", "link"))
    home.mkdir()
    other.mkdir()
    link.symlink_to(home)
    record = new_record(tmp_path / "toys", "slurm", ["aaa"])
    assert record.is_from(str(other))  # as in records of earlier versions
    record.origin = str(home)
    assert [record.is_from(str(place)) for place in (home, link, other)] == [True, True, False]
    home.rename(tmp_path / "moved")
    assert record.is_from(str(other))


def test_a_record_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    record = new_record(tmp_path / "toys", "slurm", ["aaa"])
    record.write()
    content = json.loads(record.file.read_text())
    for key in ("site", "origin", "uid", "user"):
        del content[key]
    record.file.write_text(json.dumps(content))
    [found] = read_records(tmp_path / "toys")
    assert (found.token, found.owner, found.site, found.uid) == (record.token, "", "", None)


def test_records_that_cannot_be_listed_are_an_error_and_not_none(tmp_path: Path) -> None:
    assert read_records(tmp_path / "toys") == []
    with open_folder() as folder:
        toys, own = folder / "toys", folder / "own"
        new_record(toys, "slurm", ["aaa"]).write()
        folder.chmod(0o777)
        with as_nobody():
            with pytest.raises(NotYours, match=r"toys: this sweep belongs to root \(uid 0\)"):
                read_records(toys)
            (own / "jobs").mkdir(parents=True, mode=0)
            with pytest.raises(UserError, match=r"own/jobs: Permission denied; .*you are nobody"):
                read_records(own)
            (own / "jobs").chmod(0o700)


@pytest.mark.parametrize(
    ("key", "value"),
    [("trials", "abc"), ("trials", [5]), ("jobs", []), ("jobs", {"a": 5}), ("time", "now"),
     ("state", "gone"), ("cluster", "moon"), ("options", []), ("options", {"code": 5}),
     ("uid", "me"), ("more", 1)],
)  # fmt: skip
def test_a_record_with_an_odd_value_is_named(tmp_path: Path, key: str, value: object) -> None:
    record = new_record(tmp_path, "local", ["a"])
    record.write()
    write_json(record.file, {**read_json(record.file), key: value})
    with pytest.raises(UserError, match=r"record\.json: not a record of submitted jobs"):
        read_records(tmp_path)
