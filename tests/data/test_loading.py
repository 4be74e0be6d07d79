import logging
from pathlib import Path

import numpy as np
import pytest

from ray_fer.data.decode import decode
from ray_fer.data.loading import ImageLoader, read_ahead
from ray_fer.errors import UserError
from tests.images import picture

ORDER = np.array([3, 0, 3, 21, 7])


@pytest.fixture
def uris(tmp_path: Path) -> list[str]:
    for seed in range(22):
        (tmp_path / f"{seed:02d}.jpg").write_bytes(picture(seed))
    return [str(path) for path in sorted(tmp_path.iterdir())]


@pytest.mark.parametrize("cache_bytes", [0, 1 << 30])
def test_pictures_in_the_order_asked_for(uris: list[str], cache_bytes: int) -> None:
    loader = ImageLoader(uris, 24, cache_bytes=cache_bytes)
    for _ in range(2):
        pixels, ok = loader.batch(ORDER)
        assert pixels.dtype == np.uint8
        assert ok.tolist() == [True] * 5
        assert np.array_equal(pixels, np.stack([decode(picture(int(seed)), 24) for seed in ORDER]))


def test_the_cache_needs_no_file_twice(uris: list[str]) -> None:
    loader = ImageLoader(uris, 24)
    before, _ = loader.batch(ORDER)
    for uri in uris:
        Path(uri).unlink()
    after, ok = loader.batch(ORDER)
    assert np.array_equal(before, after)
    assert ok.all()


@pytest.mark.parametrize("cache_bytes", [0, 1 << 30])
def test_a_bad_picture_is_a_row_that_says_so(
    uris: list[str], cache_bytes: int, caplog: pytest.LogCaptureFixture
) -> None:
    Path(uris[3]).write_bytes(b"no picture")
    loader = ImageLoader(uris, 24, cache_bytes=cache_bytes, name="labeled")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            pixels, ok = loader.batch(ORDER)
    assert ok.tolist() == [False, True, False, True, True]
    assert not pixels[0].any()
    assert pixels[1].any()
    assert list(loader.bad) == [uris[3]]
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["labeled"]
    assert uris[3] in caplog.text


def test_too_many_bad_pictures(uris: list[str]) -> None:
    Path(uris[0]).unlink()
    Path(uris[21]).write_bytes(b"")
    loader = ImageLoader(uris, 24, name="labeled")
    loader.batch(np.array([0, 1]))
    with pytest.raises(UserError, match=r"labeled: 2 of 22 pictures cannot be read, more than 5%; the last: .*21\.jpg"):
        loader.batch(ORDER)


def test_prefetch_gives_the_same_batches(uris: list[str]) -> None:
    batches = [np.array([i, i + 1]) for i in range(12)]
    ahead = list(read_ahead(ImageLoader(uris, 24).batch, batches))
    loader = ImageLoader(uris, 24, cache_bytes=0)
    for indices, (pixels, ok) in zip(batches, ahead, strict=True):
        assert np.array_equal(pixels, loader.batch(indices)[0])
        assert ok.all()


def test_no_picture_at_all() -> None:
    pixels, ok = ImageLoader([], 24).batch(np.empty(0, np.int64))
    assert (pixels.shape, ok.shape) == ((0, 24, 24, 3), (0,))


def test_read_ahead_is_ahead_by_its_depth_and_no_more() -> None:
    made: list[int] = []
    results = read_ahead(lambda item: made.append(item) or item, range(10), depth=3)
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    assert len(made) <= 4


def test_read_ahead_hands_errors_on() -> None:
    results = read_ahead(lambda item: 1 // item, [1, 0, 1])
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)
