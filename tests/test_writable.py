from __future__ import annotations

from pathlib import Path

import pytest

from ray_fer.errors import UserError
from ray_fer.writable import check_writable


@pytest.mark.parametrize("place", ["new/er/folder", "new.ext/folder", "old"])
def test_a_place_that_can_be_written_is_left_as_it_was(place: str, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "kept").write_text("here")
    check_writable("out", str(tmp_path / place))
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == ["old", "old/kept"]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for place in ("file", "file/x", "file/x/y"):
        with pytest.raises(UserError, match=rf"^out={tmp_path}/{place}: cannot be written \(") as caught:
            check_writable("out", str(tmp_path / place))
        assert "\n" not in str(caught.value)
    check_writable("out", str(tmp_path / "file"), folder=False)
    with pytest.raises(UserError, match=rf"^out={tmp_path}: is a folder, not a file$"):
        check_writable("out", str(tmp_path), folder=False)
    with pytest.raises(UserError, match=r"^out=ftp://x: not a local path"):
        check_writable("out", "ftp://x")
    with pytest.raises(UserError, match=r"^out=s3:/b/x: an s3 URI has two slashes, s3://bucket/key$"):
        check_writable("out", "s3:/b/x")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
