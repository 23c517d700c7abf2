"""Images in as few bytes as a channel carries: without loss where they fit, else as good as fits.

Standard formats, by Pillow: lossless WebP; where that is too long, JPEG 2000 (irreversible,
truncated at the size given) or AVIF, whichever has the smaller squared error.  What is the same
for all images of a size, the headers, is not sent: the receiver has it from an image of its own.
"""

import io
import math
import struct
import zlib
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

Pixels = NDArray[np.uint8]
"""H W C, C 3 or 1."""

_FRAME = struct.Struct(">BI")  # format and checksum, and of a file:
_LENGTH = struct.Struct(">HB")  # 16 and 8 bits
NUM_FRAME_BYTES = _FRAME.size
_WEBP, _JPEG_2000, _AVIF, OWN = range(4)
_START_OF_TILE = b"\xff\x90"  # of JPEG 2000: where the header ends
_MEDIA_DATA = b"mdat"  # of AVIF, likewise
_MAX_QUALITY = 100
_AVIF_OPTIONS = {"speed": 6, "advanced": {"tune": "psnr"}}  # not what looks best: .5 to 1 dB
MAX_AVIF_RATE = 2.0  # bits a pixel, beyond which JPEG 2000 is as good and ten times as fast


def compress(pixels: Pixels, num_bytes: int) -> bytes:
    """Return ``num_bytes`` bytes that tell as much of an image as they can.

    Args:
        pixels: H W C, C 3 or 1.
        num_bytes: how many; what is left over is 0, and all is where not even the coarsest
            picture fits.
    """
    room = num_bytes - _FRAME.size - _LENGTH.size
    exact = _exact(pixels)
    if len(exact) <= room:
        return _file(_WEBP, exact, room)
    best = math.inf, b""
    for kind, body in _lossy(pixels, room):
        error = _squared_error(pixels, _restore(kind, body, pixels.shape))
        best = min(best, (error, _file(kind, body, room)))
    return best[1] or bytes(num_bytes)


def num_exact_bytes(pixels: Pixels) -> int:
    """Return how many bytes an image is compressed to without loss."""
    return _FRAME.size + _LENGTH.size + len(_exact(pixels))


def is_exact(data: bytes) -> bool:
    """Return whether what :func:`compress` gave holds an image without loss."""
    return data[0] == _WEBP


def decompress(data: bytes, shape: tuple[int, ...]) -> Pixels | None:
    """Return the image of :func:`compress`; None if there is none, or a byte is wrong.

    Args:
        data: of :func:`compress`, with or without errors.
        shape: H, W, C.
    """
    kind, body = unframed(data)
    if kind is None or kind >= OWN or len(body) < _LENGTH.size:
        return None
    high, low = _LENGTH.unpack_from(body)
    file = body[_LENGTH.size : _LENGTH.size + (high << 8 | low)]
    return _restore(kind, file, shape) if file else None


def framed(kind: int, body: bytes) -> bytes:
    """Return bytes of a format, :data:`OWN` or one of here, behind their format and checksum."""
    return _FRAME.pack(kind, zlib.crc32(body)) + body


def unframed(data: bytes) -> tuple[int | None, bytes]:
    """Return the format and what :func:`framed` was given; None for a format if it was garbled."""
    if len(data) <= _FRAME.size:
        return None, b""
    kind, checksum = _FRAME.unpack_from(data)
    body = data[_FRAME.size :]
    # of nothing but zeros the checksum is not 0
    return (kind if kind <= OWN and zlib.crc32(body) == checksum else None), body


def _exact(pixels: Pixels) -> bytes:
    return _save(pixels, "WEBP", lossless=True, quality=50)


def _file(kind: int, body: bytes, room: int) -> bytes:
    """Return a file that fills a block."""
    return framed(kind, _LENGTH.pack(len(body) >> 8, len(body) & 255) + body.ljust(room, b"\0"))


def _lossy(pixels: Pixels, room: int) -> Iterator[tuple[int, bytes]]:
    """Give what comes next to a size in each lossy format, headers removed."""
    header = len(_header(_JPEG_2000, pixels.shape))
    for spare in (0, 64):  # the format aims at a size, and may miss it
        if room + header > spare:
            options = _rate(pixels.shape, room + header - spare)
            body = _save(pixels, "JPEG2000", **options)[header:]
            if len(body) <= room:
                yield _JPEG_2000, body
                break
    num_pixels = pixels.shape[0] * pixels.shape[1]
    if 8 * room > MAX_AVIF_RATE * num_pixels or not features.check("avif"):
        return
    head = _header(_AVIF, pixels.shape)
    low, high, best = 0, _MAX_QUALITY, b""
    while low <= high:
        middle = (low + high) // 2
        whole = _save(pixels, "AVIF", quality=middle, **_AVIF_OPTIONS)
        body = whole[len(head) :]
        if len(body) <= room and _avif(head, body) == whole:
            best, low = body, middle + 1
        else:
            high = middle - 1
    if best:
        yield _AVIF, best


def _restore(kind: int, body: bytes, shape: tuple[int, ...]) -> Pixels:
    """Return the pixels of a picture without its header, H W C."""
    if kind == _AVIF:
        body = _avif(_header(kind, shape), body)
    elif kind == _JPEG_2000:
        body = _header(kind, shape) + body
    picture = Image.open(io.BytesIO(body))
    pixels: Pixels = np.asarray(picture.convert("RGB" if shape[2] == 3 else "L"))
    return pixels.reshape(shape)


@lru_cache(maxsize=8)
def _header(kind: int, shape: tuple[int, ...]) -> bytes:
    """Return how every picture of a shape begins, lengths apart."""
    grey = np.full(shape, 128, dtype=np.uint8)
    if kind == _JPEG_2000:
        whole = _save(grey, "JPEG2000", **_rate(shape, max(grey.size // 8, 256)))
        return whole[: whole.index(_START_OF_TILE)]
    whole = _save(grey, "AVIF", quality=50, **_AVIF_OPTIONS)
    return whole[: whole.index(_MEDIA_DATA) + len(_MEDIA_DATA)]


def _avif(head: bytes, body: bytes) -> bytes:
    """Return a whole file: its header tells the length of what follows twice."""
    (box,) = struct.unpack(">I", head[-8:-4])
    item = struct.pack(">I", box - 8)
    place = head.rindex(item, 0, -8)
    return b"".join(
        (
            head[:place],
            struct.pack(">I", len(body)),
            head[place + 4 : -8],
            struct.pack(">I", len(body) + 8),
            head[-4:],
            body,
        )
    )


def _rate(shape: tuple[int, ...], num_bytes: int) -> dict[str, Any]:
    """Return the options of JPEG 2000 for a size."""
    return {
        "irreversible": True,
        "mct": int(shape[2] == 3),  # luminance and chrominances: 2 to 10 dB
        "no_jp2": True,
        "quality_mode": "rates",
        "quality_layers": [math.prod(shape) / num_bytes],
    }


def _save(pixels: Pixels, name: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0]).save(
        stream, name, **options
    )
    return stream.getvalue()


def _squared_error(pixels: Pixels, found: Pixels) -> float:
    return float(np.square(pixels.astype(np.float64) - found).mean())
