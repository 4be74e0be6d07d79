from pathlib import Path

import pytest
from typing_extensions import TypedDict

from ray_fer.documents import MissingDocumentError, read_document
from ray_fer.errors import UserError


class Inner(TypedDict):
    share: float


class Example(TypedDict):
    names: list[str]
    inner: Inner


WHOLE = '{"names": ["a"], "inner": {"share": 1, "later": true}, "more": null}'


def test_what_fits_is_handed_over_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text(WHOLE)
    found = read_document(str(tmp_path / "d.json"), Example)
    assert found == {"names": ["a"], "inner": {"share": 1, "later": True}, "more": None}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not JSON (the file is empty)"),
        (" \n", "not JSON (the file is empty)"),
        (WHOLE[:20], "not JSON (Unterminated string"),
        ("\xff\x00", "not JSON ("),
        pytest.param("[" * 100_000, "not JSON (", id="deep"),
        ("[]", "input should be a valid dictionary"),
        ("null", "input should be a valid dictionary, not None"),
        ("{}", "names: is missing"),
        ('{"names": "a", "inner": {"share": 1}}', "names: input should be a valid list, not 'a'"),
        ('{"names": ["a", 2], "inner": {"share": 1}}', "names.1: input should be a valid string, not 2"),
        ('{"names": [], "inner": {"share": "1"}}', "inner.share: input should be a valid number, not '1'"),
        ('{"names": [], "inner": {"share": true}}', "inner.share: input should be a valid number, not True"),
        ('{"names": [], "inner": {}}', "inner.share: is missing"),
    ],
)
def test_what_does_not_fit_is_one_line(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "d.json"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError) as refused:
        read_document(str(file), Example)
    assert str(refused.value).startswith(f"{file}: {said}")
    assert len(str(refused.value).splitlines()) == 1


def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(MissingDocumentError, match=r"none\.json: is missing"):
        read_document(str(tmp_path / "none.json"), Example)
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(UserError, match=r"folder\.json: cannot be read \("):
        read_document(str(tmp_path / "folder.json"), Example)
