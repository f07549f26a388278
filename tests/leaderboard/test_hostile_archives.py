"""Archives whose table of members lies: refused before a member is read."""

import zipfile
from pathlib import Path

import pytest
from submission_toys import Files, array_name, as_zip

from leaderboard.submissions import faults
from leaderboard.submissions.verify import Suites, verify


def said(path: Path, suites: Suites) -> str:
    found = verify(path, suites)
    assert not found.accepted
    return "\n".join(map(str, found.faults))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_members_that_overlap_or_are_there_twice(honest: Files, suites: Suites, tmp_path: Path) -> None:
    array = array_name(honest)
    twice = as_zip(honest, tmp_path / "t.zip", lambda z: z.writestr(array, honest[array]))
    assert "is there twice" in said(twice, suites)
    whole = bytearray(as_zip(honest, tmp_path / "o.zip").read_bytes())
    with zipfile.ZipFile(tmp_path / "o.zip") as archive:
        target = archive.infolist()[0].header_offset
    entry = whole.rindex(b"PK\x01\x02")
    whole[entry + 42 : entry + 46] = target.to_bytes(4, "little")  # the last member starts where the first one does
    (tmp_path / "o.zip").write_bytes(bytes(whole))
    assert "overlap" in said(tmp_path / "o.zip", suites)


def test_a_huge_table_of_members_is_never_read(honest: Files, suites: Suites, tmp_path: Path) -> None:
    whole = bytearray(as_zip(honest, tmp_path / "s.zip").read_bytes())
    end = whole.rindex(b"PK\x05\x06")
    large = whole[:end] + whole[end:]
    large[end + 12 : end + 16] = (2**30).to_bytes(4, "little")
    (tmp_path / "s.zip").write_bytes(bytes(large))
    assert "table of members" in said(tmp_path / "s.zip", suites)
    locator = b"PK\x06\x07" + bytes(16)
    (tmp_path / "s.zip").write_bytes(bytes(whole[:end] + locator + whole[end:]))
    assert "zip64" in said(tmp_path / "s.zip", suites)
    with (tmp_path / "s.zip").open("wb") as file:
        file.truncate(faults.MAX_TOTAL + 1)
    assert "more than" in said(tmp_path / "s.zip", suites)
