from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ray_fer.data import stream as module
from ray_fer.data.sampling import shuffled
from ray_fer.data.stream import Decoder, PictureStream, Turns
from ray_fer.errors import UserError
from tests.training.toy import write_faces


@pytest.mark.parametrize("start", [0, 3, 10, 25])
def test_the_sequence_of_shuffles_is_one(start: int) -> None:
    whole = shuffled(10, 0, 60, seed=1)
    assert shuffled(10, start, 17, seed=1).tolist() == whole[start : start + 17].tolist()
    assert Counter(whole.tolist()) == dict.fromkeys(range(10), 6)
    assert not np.array_equal(whole[:10], whole[10:20])
    assert not np.array_equal(whole, shuffled(10, 0, 60, seed=2))


def stream(uris: list[str], ranks: int) -> PictureStream:
    return PictureStream(uris, 8, batch=10, steps=1, epochs=1, rank=0, ranks=ranks, broadcast=lambda note: note)


def test_too_many_unreadable_pictures_are_an_error(caplog: pytest.LogCaptureFixture) -> None:
    """Of the part of a rank, and of all that it has met once it has met more."""
    half = stream([f"u{row}" for row in range(80)], ranks=2)
    for start in (0, 10):
        half.note(range(start, start + 10), ["", "damaged", *[""] * 8])
    half.note([1], ["damaged"])
    assert half.bad == {1, 11}
    assert caplog.messages == [f"unlabeled: u{row} is left out: damaged" for row in (1, 11)]
    with pytest.raises(UserError, match=r"^unlabeled: 3 of 40 pictures .* more than 5%; the last: u21 \(damaged\)$"):
        half.note([21], ["damaged"])
    more = stream([f"u{row}" for row in range(80)], ranks=2)
    more.note(range(60), ["damaged" if row in (3, 4, 5) else "" for row in range(60)])
    with pytest.raises(UserError, match="5 of 80 pictures"):
        more.note(range(60, 80), ["damaged" if row in (60, 61) else "" for row in range(60, 80)])


def test_the_scheduler_waits_between_turns_and_not_for_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    now, slept = 100.0, []

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        slept.append(round(seconds, 3))

    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    monkeypatch.setattr(module.time, "sleep", sleep)
    turns = Turns()
    for busy in (0.0, 0.0, 0.02, 0.3):
        now += busy
        turns.on_execution_step(None)  # type: ignore[arg-type]
    assert slept == [0, 0.05, 0.03, 0]


def test_a_block_says_what_is_wrong(tmp_path: Path) -> None:
    write_faces(tmp_path, (1, 0, 0))
    (tmp_path / "damaged.png").write_bytes(b"damaged")
    uris = [str(tmp_path / name) for name in ("neutral-0.png", "damaged.png", "gone.png")]
    decoded = Decoder(8)(pa.table({"row": [4, 5, 6], "uri": uris})).to_pydict()
    good, damaged, gone = decoded["problem"]
    assert (good, damaged.partition(":")[0], gone.partition(":")[0]) == ("", "undecodable", "missing")
    assert [any(pixels) for pixels in decoded["pixels"]] == [True, False, False]
