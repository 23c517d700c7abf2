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

_FRAME = struct.Struct(">BHBI")  # format, length (16 and 8 bits), checksum
_WEBP, _JPEG_2000, _AVIF = range(3)
_START_OF_TILE = b"\xff\x90"  # of JPEG 2000: where the header ends
_MEDIA_DATA = b"mdat"  # of AVIF, likewise
_MAX_QUALITY = 100
_MAX_AVIF_RATE = 2.0  # bits a pixel, beyond which JPEG 2000 is as good and ten times as fast


def compress(pixels: Pixels, num_bytes: int) -> bytes:
    """Return ``num_bytes`` bytes that tell as much of an image as they can.

    Args:
        pixels: H W C, C 3 or 1.
        num_bytes: how many; what is left over is 0, and all is where not even the coarsest
            picture fits.
    """
    room = num_bytes - _FRAME.size
    exact = _save(pixels, "WEBP", lossless=True, quality=50)
    if len(exact) <= room:
        return _framed(_WEBP, exact).ljust(num_bytes, b"\0")
    best = math.inf, b""
    for kind, body in _lossy(pixels, room):
        error = _squared_error(pixels, _restore(kind, body, pixels.shape))
        best = min(best, (error, _framed(kind, body)))
    return best[1].ljust(num_bytes, b"\0")


def decompress(data: bytes, shape: tuple[int, ...]) -> Pixels | None:
    """Return the image of :func:`compress`; None if there is none, or a byte is wrong.

    Args:
        data: of :func:`compress`, with or without errors.
        shape: H, W, C.
    """
    if len(data) < _FRAME.size:
        return None
    kind, high, low, checksum = _FRAME.unpack_from(data)
    body = data[_FRAME.size : _FRAME.size + (high << 8 | low)]
    if not body or kind > _AVIF or zlib.crc32(body) != checksum:
        return None
    return _restore(kind, body, shape)


def _framed(kind: int, body: bytes) -> bytes:
    return _FRAME.pack(kind, len(body) >> 8, len(body) & 255, zlib.crc32(body)) + body


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
    if 8 * room > _MAX_AVIF_RATE * num_pixels or not features.check("avif"):
        return
    head = _header(_AVIF, pixels.shape)
    low, high, best = 0, _MAX_QUALITY, b""
    while low <= high:
        middle = (low + high) // 2
        whole = _save(pixels, "AVIF", quality=middle, speed=6)
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
    whole = _save(grey, "AVIF", quality=50, speed=6)
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
