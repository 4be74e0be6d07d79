"""Decodes the bytes of an untrusted image object to one square uint8 RGB picture, deterministically.

Teacher, student and evaluation all look at pictures through this one function, so that a difference between two
probabilities is never a difference between two decoders. Whatever the bytes are, the result is an array or a
`DecodeError` that becomes the row's status. There is no warning, no half-grey picture, and a bomb of ten kilobytes does
not take gigabytes.

The definition of the result: the first frame, upright (EXIF), 8-bit, transparency composited over `BACKGROUND`,
then squashed to (S, S) by Pillow's BILINEAR filter, a triangle as wide as the shrink, hence antialiased. A JPEG is
first shrunk inside the inverse DCT by the smallest m/8 that leaves both sides >= S (libjpeg-turbo's accurate
integer DCT: bit-exact on every machine), which makes it two to three times as fast as Pillow. The DCT's low-pass is
not the triangle's. On pictures with natural (1/f) spectra and 47 levels of contrast the result differs from a full
decode by 1-5 levels on average, no more than two usual resize filters differ from one another. It is aligned with it to
a fraction of a pixel. Colour profiles are ignored.

A file that misses no pixel is a picture, whatever else is wrong with it: stray bytes, no end marker, something behind
it, damaged or huge metadata. A file that misses pixels is refused, and the error gives the missing share where that can
be known. Where data is lost, libjpeg fills the rest with grey and only warns, as it does of a stray byte; Pillow hides
the warning. So a JPEG with a warning is written again without the parts that no pixel depends on (`ray_fer.data.jpeg`)
and has to decode without one. An end marker is taken as proof that all scans are there. Pillow only decodes what
simplejpeg cannot represent. Damage that leaves coded data valid, as most flipped bits do, cannot be seen in a JPEG.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

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

from ray_fer.data import chunks, jpeg
from ray_fer.data.pillow import pillow_silence, to_8_bit

IMAGE_EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"}
)
_ENDINGS = tuple(IMAGE_EXTENSIONS)
MAX_PIXELS = 50_000_000
LEADING_PADDING = b"\0\t\n\r \xef\xbb\xbf"
"""Zeros, white space and a byte-order mark: what scripts print before a picture, and no format starts with."""
_STARTS = (jpeg.START, chunks.PNG_START, chunks.WEBP_START, b"GIF8", b"BM", b"II*\0", b"MM\0*")
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
_ENOUGH_PIXELS = 1_000_000  # to see which rows are lost
_PNG_BYTES_PER_PIXEL = 9  # four channels of 16 bits, and the filter of a row of one pixel
_CMYK = ("CMYK", "YCCK")

Pixels = NDArray[np.uint8]


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
    """Whether a path or URI ends like an image file, in any case; a file may be called nothing but `.jpg`."""
    return uri.lower().endswith(_ENDINGS)


def starts_like_picture(data: bytes) -> bool:
    """Whether the first bytes are those of an image of a supported format."""
    return data[:64].lstrip(LEADING_PADDING).startswith(_STARTS)


def decode(data: bytes, size: int, *, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Decodes an image object and squashes it to a square.

    Args:
        data: Encoded image in any of JPEG, MPO, PNG, WebP, GIF, BMP, TIFF; the content shows the format, not the name.
        size: Side S of the result in pixels.
        max_pixels: Refuse pictures that declare more pixels than this, before decoding them. (Pillow's own limit of
            179 Mpx stays in force for everything but JPEG.)

    Returns:
        uint8 RGB array (S, S, 3).

    Raises:
        DecodeError: With status `undecodable` or `too_large`.
        MemoryError: When there is not enough memory.
    """
    out = np.empty((size, size, 3), np.uint8)
    decode_into(data, out, max_pixels=max_pixels)
    return out


def decode_into(data: bytes, out: Pixels, *, max_pixels: int = MAX_PIXELS) -> None:
    """Decodes as `decode`, but into `out`, uint8 (S, S, 3), for example one row of a batch's array.

    When it raises, `out` is as it was.
    """
    decode_into_each(data, (out,), len(out), max_pixels=max_pixels)


def decode_into_each(data: bytes, outs: Sequence[Pixels], cover: int, *, max_pixels: int = MAX_PIXELS) -> None:
    """Decodes once and squashes to several sizes, for teachers that look at the same picture.

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
        """The part of `image` that is picture; of a shrunk side the last pixel is only partly so.

        Resizing has to leave the rest out, or the picture would be stretched by up to one pixel.
        """
        return 0.0, 0.0, self.width * self.scale, self.height * self.scale


def open_picture(data: bytes, least: Callable[[int, int], tuple[int, int]], *, max_pixels: int = MAX_PIXELS) -> Opened:
    """Decodes an image object without turning or resizing it any further than libjpeg can.

    Args:
        data: As for `decode`.
        least: From the picture's height and width to the height and width that a shrunk JPEG still has to have.
        max_pixels: As for `decode`.

    Raises:
        DecodeError: As `decode`.
    """
    with one_error():
        data = data.lstrip(LEADING_PADDING) or data
        if data.startswith(jpeg.START):
            return _open_jpeg(data, least, max_pixels)
        if data.startswith(chunks.PNG_START):
            return _open_png(data, max_pixels)
        if data.startswith(chunks.WEBP_START):
            return _open_webp(data, max_pixels)
        return _open_pillow(data, max_pixels)


@contextmanager
def one_error() -> Iterator[None]:
    """Turns every exception of a decoder inside the block into a `DecodeError`, except MemoryError."""
    try:
        yield
    except (DecodeError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise DecodeError("too_large", str(error)) from None
    except Exception as error:  # the bytes decide what is raised, down to SystemError and RecursionError
        raise DecodeError("undecodable", f"{type(error).__name__}: {error}") from None


def _open_jpeg(data: bytes, least: Callable[[int, int], tuple[int, int]], max_pixels: int) -> Opened:
    """Decodes by libjpeg-turbo at the smallest DCT scale that leaves `least`, or by Pillow what TurboJPEG cannot."""
    if jpeg.has_too_many_scans(data):
        raise DecodeError("undecodable", f"JPEG of more than {jpeg.MAX_SCANS} scans")
    try:
        return _turbo(data, least, max_pixels)
    except (ValueError, KeyError) as error:
        reason = str(error)
    files = list(jpeg.mended(data))
    for file in files:
        if file.complete:
            with suppress(ValueError, KeyError):
                return _turbo(file.data, least, max_pixels)
    if not files:
        raise DecodeError("undecodable", f"damaged JPEG: no coded data that its header describes ({reason})")
    shortest = files[-1]
    try:
        loss = shortest.loss(lambda file: _turbo_leniently(file, max_pixels))
    except (ValueError, KeyError):
        opened = _open_pillow(shortest.data, max_pixels)
        loss = shortest.loss(lambda file: to_rgb(_open_pillow(file, max_pixels).image))
        if loss is None:
            return opened
    raise DecodeError("undecodable", f"damaged JPEG: {loss or f'an unknown share of the rows is lost ({reason})'}")


def _turbo(data: bytes, least: Callable[[int, int], tuple[int, int]], max_pixels: int) -> Opened:
    height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    _check_pixels(int(width), int(height), max_pixels)
    space = "GRAY" if colours == "Gray" else "CMYK" if colours in _CMYK else "RGB"
    min_height, min_width = least(int(height), int(width))
    pixels = simplejpeg.decode_jpeg(data, space, min_height=min_height, min_width=min_width)
    if space == "GRAY":
        image = Image.fromarray(pixels[..., 0])
    elif space == "CMYK":
        # Adobe's convention, which every reader follows: ink is stored inverted.
        image = Image.frombytes("CMYK", pixels.shape[1::-1], np.invert(pixels).tobytes()).convert("RGB")
    else:
        image = Image.fromarray(pixels)
    return Opened(image, jpeg.orientation(data), _dct_scale(height, width, pixels.shape), int(width), int(height))


def _turbo_leniently(data: bytes, max_pixels: int) -> Pixels:
    """Decodes also damaged data as libjpeg does, to (H, W, C); a large picture is shrunk, so that this costs little."""
    height, width, colours, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    _check_pixels(int(width), int(height), max_pixels)
    shrink = min(1.0, (_ENOUGH_PIXELS / (width * height)) ** 0.5)
    pixels: Pixels = simplejpeg.decode_jpeg(
        data,
        "CMYK" if colours in _CMYK else "RGB",
        min_height=int(height * shrink),
        min_width=int(width * shrink),
        strict=False,
    )
    return pixels


def _dct_scale(height: int, width: int, shape: tuple[int, ...]) -> float:
    """The m/8 by which libjpeg shrank (height, width) to `shape`."""
    for eighths in range(1, 9):
        if (-(-height * eighths // 8), -(-width * eighths // 8)) == shape[:2]:
            return eighths / 8
    raise DecodeError("undecodable", f"a JPEG of {width} x {height} pixels was decoded to {shape[1]} x {shape[0]}")


def _open_png(data: bytes, max_pixels: int) -> Opened:
    try:
        file = chunks.essential_png(data, _PNG_BYTES_PER_PIXEL * max_pixels)
    except ValueError as error:
        raise DecodeError("undecodable", f"damaged PNG: {error}") from None
    try:
        return _open_pillow(file, max_pixels)
    except OSError as error:
        loss = chunks.png_loss(file) or f"an unknown share of the pixels is lost ({error})"
        raise DecodeError("undecodable", f"damaged PNG: {loss}") from None


def _open_webp(data: bytes, max_pixels: int) -> Opened:
    """Decodes a WebP; its metadata and its length are only looked at where it does not decode as it is."""
    try:
        return _open_pillow(data, max_pixels)
    except OSError:
        return _open_pillow(chunks.essential_webp(data), max_pixels)


def _open_pillow(data: bytes, max_pixels: int) -> Opened:
    with pillow_silence:
        try:
            opened = Image.open(io.BytesIO(data), formats=_FORMATS)
        except UnidentifiedImageError:
            starts = f"starts with {data[:16]!r}" if data else "empty object"
            raise DecodeError("undecodable", f"not an image of a supported format: {starts}") from None
        with opened as image:
            _check_pixels(*image.size, max_pixels)
            image.load()
            # Pillow turns a TIFF itself and leaves its tag out of `info`.
            orientation = jpeg.exif_orientation(image.info.get("exif", b""))
            picture = to_8_bit(image)
            return Opened(picture, orientation, 1.0, *picture.size)


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width <= 0 or height <= 0:
        raise DecodeError("undecodable", f"picture of {width} x {height} pixels")
    if width * height > max_pixels:
        raise DecodeError("too_large", f"picture of {width} x {height} pixels, more than {max_pixels}")


def _finish(opened: Opened, outs: Sequence[Pixels]) -> None:
    """Squashes a picture, composites, turns the small squares upright and writes them into ``outs``."""
    squares = [upright(to_rgb(_squashed(opened, len(out))), opened.orientation) for out in outs]
    for out, square in zip(outs, squares, strict=True):
        out[...] = square


def _squashed(opened: Opened, size: int) -> Image.Image:
    if opened.box[-2:] == (size, size):
        return opened.image
    return opened.image.resize((size, size), Image.Resampling.BILINEAR, opened.box)


def to_rgb(image: Image.Image) -> Pixels:
    """Pixels (H, W, 3) of an L, RGB or RGBA image, (H, W, 1) of one in grey; transparency is composited."""
    pixels: Pixels = np.asarray(image)
    if pixels.ndim == 2:
        return pixels[..., None]
    if pixels.shape[2] == 4:
        # Pillow resamples RGBA premultiplied, so that compositing afterwards equals compositing before.
        alpha = pixels[..., 3:].astype(np.uint16)
        pixels = ((pixels[..., :3] * alpha + BACKGROUND * (255 - alpha) + 127) // 255).astype(np.uint8)
    return pixels


def upright(pixels: Pixels, orientation: int) -> Pixels:
    """Undoes an EXIF orientation 1..8 of (H, W, C) pixels: transpose for 5..8, then mirror the axes."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels
