"""PNG and WebP files without the chunks that no pixel depends on.

Texts and colour profiles are ignored. Where they are damaged, a strict decoder refuses the picture; compressed, they
may inflate to gigabytes. So they are left out before a decoder sees them.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

PNG_START = b"\x89PNG\r\n\x1a\n"
WEBP_START = b"RIFF"

_PNG_COLOURS = frozenset({b"PLTE", b"tRNS"})
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PIECE = 1 << 10
_ZLIB_HEADER = 2
_WEBP_PIXELS = frozenset({b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF"})
_WEBP_EXTENDED = b"VP8X"
_PROFILE_FLAG, _EXIF_FLAG, _XMP_FLAG = 0x20, 0x08, 0x04


def essential_png(data: bytes, max_size: int) -> bytes:
    """Keeps the header, palette, transparency and pixels of a PNG, and EXIF's orientation if it is undamaged.

    The pixels carry a checksum of their own within the compressed stream, which a decoder looks at, so that those of
    their chunks do not matter. An animation keeps its first frame, or the picture that stands for it.

    Args:
        data: The file.
        max_size: How many bytes of pixels may be inflated to check a header.

    Raises:
        ValueError: Where nothing else tells whether a colour is right: a palette or transparency with a wrong
            checksum, or a header with one that does not fit the pixels; and for Apple's variant, which is no PNG.
    """
    chunks = _png_chunks(data)
    header = next(chunks, None)
    if header is not None and header.kind == b"CgBI":
        raise ValueError("Apple's variant of PNG")
    if header is None or header.kind != b"IHDR" or len(header.body) < 13:
        return data
    before, pixels = [PNG_START, header.mended()], []
    for chunk in chunks:
        if chunk.kind == b"IDAT":
            pixels.append(chunk.written if chunk.complete else chunk.mended())
        elif chunk.kind == b"IEND":
            break
        elif chunk.kind in _PNG_COLOURS and not chunk.intact:
            raise ValueError(f"the checksum of its chunk {chunk.kind.decode()} is wrong, and so may be its colours")
        elif chunk.kind in _PNG_COLOURS or (chunk.kind == b"eXIf" and chunk.intact):
            before.append(chunk.written)
    file = b"".join([*before, *pixels, _PNG_END])
    if not header.intact and not _fills(file, max_size):
        raise ValueError("the checksum of its header is wrong, and the pixels do not fit it")
    return file


def png_loss(data: bytes) -> str | None:
    """Says which share of a PNG's pixels is missing, or None if their number is right."""
    expected = _png_size(data)
    there = min(expected, _inflated(data, expected, checked=False)[0])
    if there == expected or not expected:
        return None
    share = max(1, round(100 * (1 - there / expected)))
    interlaced = data[len(PNG_START) + 20] != 0
    return f"{share} % of the pixels are missing" if interlaced else f"the last {share} % of the rows are missing"


def essential_webp(data: bytes) -> bytes:
    """Keeps the pixels and EXIF of a WebP, with the length that the file really has."""
    parts = []
    position, flags = 12, 0
    while position + 8 <= len(data):
        kind, length = data[position : position + 4], int.from_bytes(data[position + 4 : position + 8], "little")
        body = data[position + 8 : position + 8 + length]
        position += 8 + length + length % 2
        if kind == b"EXIF" and len(body) == length:
            flags = _EXIF_FLAG
        elif kind not in _WEBP_PIXELS and kind != _WEBP_EXTENDED:
            continue
        parts.append((kind, length, body))
    chunks = b""
    for kind, length, body in parts:
        if kind == _WEBP_EXTENDED and body:
            body = bytes([body[0] & ~(_PROFILE_FLAG | _EXIF_FLAG | _XMP_FLAG) | flags]) + body[1:]
        chunks += kind + struct.pack("<I", length) + body + bytes(length % 2 if len(body) == length else 0)
    return WEBP_START + struct.pack("<I", 4 + len(chunks)) + data[8:12] + chunks


@dataclass(frozen=True)
class _PngChunk:
    kind: bytes
    body: bytes
    written: bytes  # with length, kind and checksum
    complete: bool

    @property
    def intact(self) -> bool:
        return self.complete and zlib.crc32(self.kind + self.body).to_bytes(4, "big") == self.written[-4:]

    def mended(self) -> bytes:
        checksum = zlib.crc32(self.kind + self.body)
        return struct.pack(">I", len(self.body)) + self.kind + self.body + struct.pack(">I", checksum)


def _png_chunks(data: bytes) -> Iterator[_PngChunk]:
    position = len(PNG_START)
    while position + 8 <= len(data):
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        body = data[position + 8 : min(end - 4, len(data))]
        yield _PngChunk(data[position + 4 : position + 8], body, data[position:end], end <= len(data))
        position = end


def _png_size(data: bytes) -> int:
    """How many bytes the rows take, each with the byte that names its filter; 0 if the header makes no sense."""
    width, height, bits, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, len(PNG_START) + 8)
    bits_per_pixel = bits * _CHANNELS.get(colour, 0)
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    size = 0
    for left, top, right_step, down_step in passes:
        across, down = -(-(width - left) // right_step), -(-(height - top) // down_step)
        if across > 0 and down > 0:
            size += down * (1 + -(-across * bits_per_pixel // 8))
    return size if bits_per_pixel else 0


def _inflated(data: bytes, limit: int, checked: bool) -> tuple[int, bool]:
    """How many bytes the pixels inflate to, up to a little more than `limit`, and whether their stream is complete."""
    stream, size = zlib.decompressobj(zlib.MAX_WBITS if checked else -zlib.MAX_WBITS), 0
    rest = b"".join(chunk.body for chunk in _png_chunks(data) if chunk.kind == b"IDAT")
    rest = rest if checked else rest[_ZLIB_HEADER:]
    try:
        for start in range(0, len(rest), _PIECE):
            piece = rest[start : start + _PIECE]
            while piece and not stream.eof and size <= limit:
                size += len(stream.decompress(piece, _PIECE))
                piece = stream.unconsumed_tail
    except zlib.error:
        return size, False
    return size, stream.eof


def _fills(data: bytes, max_size: int) -> bool:
    expected = _png_size(data)
    return expected <= max_size and _inflated(data, expected, checked=True) == (expected, True)
