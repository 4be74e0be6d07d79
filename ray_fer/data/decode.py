"""Bytes of an untrusted image object -> one square uint8 RGB picture, deterministically.

Teacher, student and evaluation all look at pictures through this one function, so that a difference between two
probabilities is never a difference between two decoders. Whatever the bytes are, the answer is an array or a
`DecodeError` that becomes the row's status; no warning, no half-grey picture, no gigabytes for a ten-kilobyte bomb.

The definition of the result: the first frame, upright (EXIF), 8-bit, transparency composited over `BACKGROUND`,
then squashed to (S, S) by Pillow's BILINEAR filter, a triangle as wide as the shrink, hence antialiased. A JPEG is
first shrunk inside the inverse DCT by the smallest m/8 that leaves both sides >= S (libjpeg-turbo's accurate
integer DCT: bit-exact on every machine), which makes it two to three times as fast as Pillow. The DCT's low-pass is
not the triangle's: on pictures with natural (1/f) spectra and 47 levels of contrast the result differs from a full
decode by 1-5 levels on average, no more than two usual resize filters differ from one another; it is aligned with it
to a fraction of a pixel. Colour profiles are ignored.

Where libjpeg reports lost data it fills the rest with grey and only warns; Pillow hides that warning. So such a JPEG
is refused here rather than handed on to Pillow, which only sees what simplejpeg cannot represent.
"""

import io
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import (  # a plugin registers its format when imported
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

IMAGE_EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"}
)
_ENDINGS = tuple(IMAGE_EXTENSIONS)
MAX_PIXELS = 50_000_000
BACKGROUND = 128
"""Grey level behind transparent pixels: the middle, so that a cut-out face gets neither a glowing nor a black frame."""

_PLUGINS = (
    PngImagePlugin.PngImageFile,
    JpegImagePlugin.JpegImageFile,
    WebPImagePlugin.WebPImageFile,
    GifImagePlugin.GifImageFile,
    BmpImagePlugin.BmpImageFile,
    TiffImagePlugin.TiffImageFile,
)
_FORMATS = tuple(plugin.format for plugin in _PLUGINS)  # an MPO file opens as JPEG
JPEG_START = b"\xff\xd8\xff"
_START_OF_SCAN = b"\xff\xda"
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")  # in coded data, 0xff is followed by 0 or is a restart
# Every scan of a progressive JPEG walks the whole picture (30 ms for 50 Mpx) and may be 75 bytes long, so that a small
# file could take hours. Encoders write about ten.
_MAX_SCANS = 64
_MAX_SEGMENTS = 10_000
_LOST_DATA = ("Corrupt JPEG data", "remature end", "instead of RST", "Inconsistent progression")
_CMYK = ("CMYK", "YCCK")

UInt8Array = NDArray[np.uint8]


class DecodeError(Exception):
    """An object that yields no picture.

    Attributes:
        status: `undecodable` (no image, damaged or unsupported) or `too_large` (more pixels than allowed).
        message: One line of at most 200 characters.
    """

    def __init__(self, status: str, message: str) -> None:
        message = " ".join(message.split())[:200]
        super().__init__(status, message)
        self.status = status
        self.message = message

    def __str__(self) -> str:
        return f"{self.status}: {self.message}"


def has_image_extension(uri: str) -> bool:
    """Tell whether a path or URI ends like an image file, in any case; a file may be called nothing but `.jpg`."""
    return uri.lower().endswith(_ENDINGS)


def decode(data: bytes, size: int, *, max_pixels: int = MAX_PIXELS) -> UInt8Array:
    """Decode an image object and squash it to a square.

    Args:
        data: Encoded image in any of JPEG, MPO, PNG, WebP, GIF, BMP, TIFF; the format is told by content, not by name.
        size: Side S of the result in pixels.
        max_pixels: Refuse pictures that declare more pixels than this, before decoding them. (Pillow's own limit of
            179 Mpx stays in force for everything but JPEG.)

    Returns:
        uint8 RGB array (S, S, 3).

    Raises:
        DecodeError: With status `undecodable` or `too_large`; never anything else but MemoryError.
    """
    out = np.empty((size, size, 3), np.uint8)
    decode_into(data, out, max_pixels=max_pixels)
    return out


def decode_into(data: bytes, out: UInt8Array, *, max_pixels: int = MAX_PIXELS) -> None:
    """Like `decode`, but write into `out`, uint8 (S, S, 3), for example one row of a batch's array.

    When it raises, `out` is as it was.
    """
    decode_into_each(data, (out,), len(out), max_pixels=max_pixels)


def decode_into_each(data: bytes, outs: Sequence[UInt8Array], cover: int, *, max_pixels: int = MAX_PIXELS) -> None:
    """Decode once and squash to several sizes, for teachers that look at the same picture.

    A square of the side `cover` is what `decode` gives. A smaller one is made from the same decoded JPEG, of which the
    DCT has left more than `decode` would have asked for: it differs from what `decode` gives no more than that does
    from a full decode. It depends on `cover` and not on which squares are wanted beside it.

    Args:
        data: As for `decode`.
        outs: Each uint8 (S, S, 3), of any sides up to `cover`; when it raises, they are as they were.
        cover: Side in pixels that a shrunk JPEG still has to cover.
        max_pixels: As for `decode`.

    Raises:
        DecodeError: As `decode`.
    """
    with one_error():
        _finish(open_picture(data, lambda *_: (cover, cover), max_pixels=max_pixels), outs)


@dataclass
class Opened:
    """A picture as its bytes hold it: not upright yet, and a JPEG perhaps shrunk.

    Attributes:
        image: Of mode L, RGB or RGBA.
        orientation: EXIF's, 1..8.
        scale: By which libjpeg shrank it. A shrunk side is rounded up to whole pixels.
        width: In pixels, before that.
        height: In pixels, before that.
    """

    image: Image.Image
    orientation: int
    scale: float
    width: int
    height: int

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The part of `image` that is picture: of a shrunk side the last pixel is only partly so.

        Whoever resizes leaves the rest out, or the picture would be stretched by up to one pixel.
        """
        return 0.0, 0.0, self.width * self.scale, self.height * self.scale


def open_picture(data: bytes, least: Callable[[int, int], tuple[int, int]], *, max_pixels: int = MAX_PIXELS) -> Opened:
    """Decode an image object without turning or resizing it any further than libjpeg can.

    Args:
        data: As for `decode`.
        least: From the picture's height and width to the height and width that a shrunk JPEG still has to have.
        max_pixels: As for `decode`.

    Raises:
        DecodeError: As `decode`.
    """
    with one_error():
        opened = _open_jpeg(data, least, max_pixels) if data.startswith(JPEG_START) else None
        return opened or _open_pillow(data, max_pixels)


@contextmanager
def one_error() -> Iterator[None]:
    """Turn whatever a decoder raises inside the block into a `DecodeError`, except MemoryError."""
    try:
        yield
    except (DecodeError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise DecodeError("too_large", str(error)) from None
    except Exception as error:  # the bytes decide what is raised, down to SystemError and RecursionError
        # Pillow bounds what a PNG's text and profile chunks may inflate to; that refusal is about size.
        status = "too_large" if "Decompressed data too large" in str(error) else "undecodable"
        raise DecodeError(status, f"{type(error).__name__}: {error}") from None


def _open_jpeg(data: bytes, least: Callable[[int, int], tuple[int, int]], max_pixels: int) -> Opened | None:
    """Decode by libjpeg-turbo at the smallest DCT scale that leaves `least`; None if only Pillow may be able to."""
    if data.count(_START_OF_SCAN) > _MAX_SCANS and _has_too_many_scans(data):
        raise DecodeError("undecodable", f"JPEG of more than {_MAX_SCANS} scans")
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        _check_pixels(int(width), int(height), max_pixels)
        space = "GRAY" if colours == "Gray" else "CMYK" if colours in _CMYK else "RGB"
        min_height, min_width = least(int(height), int(width))
        pixels = simplejpeg.decode_jpeg(data, space, min_height=min_height, min_width=min_width)
    except (ValueError, KeyError) as error:
        message = str(error)
        if any(sign in message for sign in _LOST_DATA) and "ICC" not in message:
            raise DecodeError("undecodable", message) from None
        return None
    if space == "GRAY":
        image = Image.fromarray(pixels[..., 0])
    elif space == "CMYK":
        # Adobe's convention, which every reader follows: ink is stored inverted.
        image = Image.frombytes("CMYK", pixels.shape[1::-1], np.invert(pixels).tobytes()).convert("RGB")
    else:
        image = Image.fromarray(pixels)
    return Opened(image, _jpeg_orientation(data), _dct_scale(height, width, pixels.shape), int(width), int(height))


def _dct_scale(height: int, width: int, shape: tuple[int, ...]) -> float:
    """Find the m/8 by which libjpeg shrank (height, width) to `shape`."""
    for eighths in range(1, 9):
        if (-(-height * eighths // 8), -(-width * eighths // 8)) == shape[:2]:
            return eighths / 8
    raise DecodeError("undecodable", f"a JPEG of {width} x {height} pixels was decoded to {shape[1]} x {shape[0]}")


def _open_pillow(data: bytes, max_pixels: int) -> Opened:
    with _pillow_silence:
        try:
            opened = Image.open(io.BytesIO(data), formats=_FORMATS)
        except UnidentifiedImageError:
            starts = f"starts with {data[:16]!r}" if data else "empty object"
            raise DecodeError("undecodable", f"not an image of a supported format: {starts}") from None
        with opened as image:
            _check_pixels(*image.size, max_pixels)
            image.load()
            # Pillow turns a TIFF itself and leaves its tag out of `info`.
            orientation = _exif_orientation(image.info.get("exif", b""))
            picture = _to_8_bit(image)
            return Opened(picture, orientation, 1.0, *picture.size)


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width <= 0 or height <= 0:
        raise DecodeError("undecodable", f"picture of {width} x {height} pixels")
    if width * height > max_pixels:
        raise DecodeError("too_large", f"picture of {width} x {height} pixels, more than {max_pixels}")


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Bring any mode to L, RGB or RGBA; wide integers and floats are scaled, never clipped."""
    if image.mode.startswith("I;16"):
        # The high byte, as Pillow itself takes from 16-bit colour.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        return Image.fromarray(_scale_to_8_bit(np.asarray(image)))
    if image.has_transparency_data:
        return image.convert("RGBA")
    if image.mode in ("1", "L"):
        return image.convert("L")
    return image.convert("RGB")


def _scale_to_8_bit(values: NDArray[Any]) -> UInt8Array:
    """Map 32-bit integers or floats (H, W), which declare no white level, to 8 bits.

    Values that fit 0..1 (floats), 0..255 or 0..65535 (integers) are read as such; all else is stretched from its
    minimum to its maximum.
    """
    integer = values.dtype.kind == "i"
    with np.errstate(invalid="ignore"):  # widening a signalling NaN warns
        levels = np.nan_to_num(values.astype(np.float64), copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(levels.min()), float(levels.max())
    if low >= 0 and not integer and high <= 1:
        levels *= 255
    elif low >= 0 and integer and 255 < high <= 65535:
        levels /= 257
    elif low < 0 or high > 255:
        levels -= low
        levels *= 255
        levels /= max(high - low, np.finfo(np.float64).tiny)
    return np.rint(levels, out=levels).clip(0, 255, out=levels).astype(np.uint8)


def _finish(opened: Opened, outs: Sequence[UInt8Array]) -> None:
    """Squash a picture, composite, turn upright (free on the small squares) and write them."""
    squares = [upright(to_rgb(_squashed(opened, len(out))), opened.orientation) for out in outs]
    for out, square in zip(outs, squares, strict=True):
        out[...] = square


def _squashed(opened: Opened, size: int) -> Image.Image:
    if opened.box[-2:] == (size, size):
        return opened.image
    return opened.image.resize((size, size), Image.Resampling.BILINEAR, opened.box)


def to_rgb(image: Image.Image) -> UInt8Array:
    """Pixels (H, W, 3) of an L, RGB or RGBA image, (H, W, 1) of one in grey; transparency is composited."""
    pixels: UInt8Array = np.asarray(image)
    if pixels.ndim == 2:
        return pixels[..., None]
    if pixels.shape[2] == 4:
        # Pillow resamples RGBA premultiplied, so that compositing afterwards equals compositing before.
        alpha = pixels[..., 3:].astype(np.uint16)
        pixels = ((pixels[..., :3] * alpha + BACKGROUND * (255 - alpha) + 127) // 255).astype(np.uint8)
    return pixels


def upright(pixels: UInt8Array, orientation: int) -> UInt8Array:
    """Undo an EXIF orientation 1..8 of (H, W, C) pixels: transpose for 5..8, then mirror the axes."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def _has_too_many_scans(data: bytes) -> bool:
    """Count scans up to the picture's end only: phones append a film, in which the marker's bytes occur by chance."""
    position, scans = 2, 0
    for _ in range(_MAX_SEGMENTS):
        found = _MARKER.search(data, position)
        if found is None or data[found.end() - 1] == 0xD9:
            return False
        scans += data[found.end() - 1] == 0xDA
        if scans > _MAX_SCANS:
            return True
        position = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    return True


def _jpeg_orientation(data: bytes) -> int:
    """Find the EXIF segment by hopping over the headers; a plain JPEG costs one or two microseconds."""
    position = 2
    while data[position : position + 1] == b"\xff":
        marker = data[position + 1 : position + 2]
        if marker == b"\xff":
            position += 1
            continue
        if marker == b"\xda":
            break
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == b"\xe1" and data.startswith(b"Exif\0\0", position + 4):
            return _exif_orientation(data[position + 4 : end])
        position = end
    return 1


def _exif_orientation(exif: bytes) -> int:
    """Read tag 0x0112 from the first directory of an EXIF block; damage of any kind reads as 1, upright."""
    tiff = exif.removeprefix(b"Exif\0\0")
    if tiff.startswith(b"II*\0"):
        order = "little"
    elif tiff.startswith(b"MM\0*"):
        order = "big"
    else:
        return 1

    def number(start: int, length: int) -> int:
        return int.from_bytes(tiff[start : start + length], order)  # type: ignore[arg-type]

    directory = number(4, 4)
    for entry in range(directory + 2, min(directory + 2 + 12 * number(directory, 2), len(tiff)), 12):
        if number(entry, 2) == 0x0112:
            value = number(entry + 8, 4 if number(entry + 2, 2) == 4 else 2)
            return value if 1 <= value <= 8 else 1
    return 1


class _PillowSilence:
    """Ignore Pillow's warnings inside the block, from any number of threads.

    `warnings.catch_warnings` swaps a process-wide list: two threads whose blocks overlap can leave it swapped for
    good. Here the first one in swaps it and the last one out restores it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._saved = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._saved = warnings.catch_warnings()
                self._saved.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._saved.__exit__(None, None, None)


_pillow_silence = _PillowSilence()
