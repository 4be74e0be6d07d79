"""One run over one bucket of everything that may lie in it: every object one row, with the right status."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections import Counter

from PIL import Image

from ray_fer import storage
from ray_fer.data.sources import list_sources
from ray_fer.labeling.ledger import Ledger, claim_missing
from ray_fer.labeling.table import open_table, scan_keys
from tests.data.test_decode import bombs
from tests.images import picture
from tests.system.jobs import run_job
from tests.system.test_pseudo_label import rows_of


def huge_but_true() -> bytes:
    """A PNG of 9000 x 9000 grey pixels in 80 kB."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", 9000, 9000, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(9001 * 9000))),
    )
    body = b"".join(struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks)
    return b"\x89PNG\r\n\x1a\n" + body + struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))


def animated(kind: str) -> bytes:
    frames = [Image.open(io.BytesIO(picture(seed))) for seed in range(30)]
    buffer = io.BytesIO()
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def contents() -> dict[str, tuple[bytes, str]]:
    """Object name → bytes and the status that they should get."""
    jpeg = picture(0, size=200)
    found = {f"{name}.png": (data, "too_large") for name, data in bombs().items() if name != "webp"}
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"):
        whole = picture(1, size=64, kind=kind)
        found |= {f"{kind}-{n}.jpg": (whole[: len(whole) * n // 10], "undecodable") for n in range(10)}
        found[f"{kind}-garbage.jpg"] = (whole[:12] + os.urandom(3000), "")
        found[f"{kind}-whole.jpg"] = (whole, "ok")
    for name, start in {
        "html": b"<!DOCTYPE html><html>",
        "svg": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>',
        "pdf": b"%PDF-1.7\n",
        "zip": b"PK\3\4",
        "mp4": b"\0\0\0\x18ftypmp42",
        "heic": b"\0\0\0\x18ftypheic",
        "psd": b"8BPS\0\1",
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
    }.items():
        found[f"{name}.jpg"] = (start + bytes(500), "undecodable")
    return found | {
        "huge.png": (huge_but_true(), "too_large"),
        "big.bmp": (b"BM" + bytes(2 << 20), "too_large"),
        "film-behind.jpg": (jpeg + b"\xff\xda" * 1000, "ok"),
        "animated.gif": (animated("GIF"), "ok"),
        "animated.webp": (animated("WEBP"), "ok"),
        "animated.png": (animated("PNG"), "ok"),
        "pages.tif": (animated("TIFF"), "ok"),
    }


NAMES = (
    *("a b+c.jpg", "100%41%.jpg", "q?x=1#f.jpg", "new\nline.jpg", "tab\t.jpg", "cr\r.jpg", "q'\".jpg", "ä€😀.jpg"),
    *("&<>.jpg", "~.JPEG", "..jpg", ".jpg", "[x]*{}.jpg", "e\u0301.jpg", "\u202e.jpg", " .jpg", "%2F.jpg", "\x01.jpg"),
    *("/".join("d" * 90 for _ in range(9)) + "/deep.jpg", "x.jpg/in.jpg", "n" * 250 + ".jpg"),
)


def test_one_bucket_of_everything(s3: str, model: str) -> None:
    fs, bucket = storage.filesystem(s3)
    expected = {f"{s3}/in/{name}": status for name, (_, status) in contents().items()}
    fs.pipe({f"{bucket}/in/{name}": data for name, (data, _) in contents().items()})
    for number, name in enumerate(NAMES):
        fs.call_s3("put_object", Bucket=bucket, Key=f"in/{name}", Body=picture(100 + number))
        expected[f"{s3}/in/{name}"] = "ok"
    for key in ("in/folder/", "in/y.jpg/", "in/notes.txt"):
        fs.call_s3("put_object", Bucket=bucket, Key=key, Body=b"")
    table = f"{s3}/in/table"  # inside its own source
    summary = run_job("pseudo_label", f"source={s3}/in/", f"teacher={model}", f"table={table}", "max_bytes=1000000")
    assert summary["labelled"] == len(expected)
    rows = {row["uri"]: row for row in rows_of(table)}
    assert len(rows) == len(rows_of(table)) == len(expected)
    wrong = {uri: rows[uri]["error"] for uri, status in expected.items() if status and rows[uri]["status"] != status}
    assert not wrong
    assert all((row["label"] is None) == bool(row["error"]) == (row["status"] != "ok") for row in rows.values())
    assert all(len(str(row["error"] or "").splitlines()) <= 1 for row in rows.values())
    opened = open_table(table)
    assert opened
    ledger = Ledger(scan_keys(opened, summary["model"]), max_attempts=3)
    again = [claim_missing([ledger], page)[0].num_rows for page in list_sources([f"{s3}/in"], Counter())]
    assert sum(again) == 0
