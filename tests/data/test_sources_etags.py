from datetime import UTC, datetime

import pyarrow as pa
import pytest

from ray_fer.data.sources.etags import object_identity, plain_etag, plain_etags

NUMBER = "9e107d9d372bb6826bd81d3542a419d6"
SPELLINGS = {
    f'"{NUMBER}"': NUMBER,
    NUMBER: NUMBER,
    f'W/"{NUMBER}"': NUMBER,
    f'w/"{NUMBER}-12"': f"{NUMBER}-12",
    f' "{NUMBER}-2" ': f"{NUMBER}-2",
    f'"{NUMBER}-gzip"': NUMBER,
    f'W/"{NUMBER}-3;br"': f"{NUMBER}-3",
    f'"{NUMBER}--gzip"': NUMBER,
    f'"{NUMBER}"-gzip': NUMBER,
    f"&quot;{NUMBER}&quot;": NUMBER,
    f'""{NUMBER}""': NUMBER,
    f'"{NUMBER}@512+99"': f"{NUMBER}@512+99",
    '"rewritten by a gateway"': "rewritten by a gateway",
    "": "",
}


@pytest.mark.parametrize(("told", "plain"), SPELLINGS.items())
def test_all_spellings_of_an_etag_are_one(told: str, plain: str) -> None:
    assert plain_etag(told) == plain
    assert plain_etag(plain) == plain


@pytest.mark.parametrize("chunks", [0, 1, 3])
def test_a_column_of_them(chunks: int) -> None:
    column = pa.chunked_array([list(SPELLINGS)] * chunks, pa.string())
    assert plain_etags(column).to_pylist() == list(SPELLINGS.values()) * chunks
    assert plain_etags(pa.array(SPELLINGS)).to_pylist() == list(SPELLINGS.values())
    assert plain_etags(pa.array([f'"{NUMBER}"', ""])).to_pylist() == [NUMBER, ""]


def test_without_an_etag_size_and_time_tell_objects_apart() -> None:
    changed = datetime(2026, 1, 1, 0, 0, 5, 900_000, UTC)  # a listing has milliseconds, a head has none
    assert object_identity({"ETag": 'W/"a1"', "LastModified": changed}, 7) == "a1"
    assert object_identity({"LastModified": changed}, 7) == "7-1767225605"
    assert object_identity({"LastModified": changed.replace(microsecond=0), "ETag": ""}, 7) == "7-1767225605"
    assert object_identity({}, 7) == ""
