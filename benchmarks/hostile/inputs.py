"""Files from a stranger: pictures, YAML, pickles, and what a run or a capture left, damaged."""

import json
import pickle
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image

MARK = "ran"
"""File that code of a stranger would leave in the working folder."""


class Evil:
    """Unpickled, it would leave :data:`MARK`."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what a pickle would call."""
        import os

        return os.system, (f"touch {MARK}",)


# --- pictures ----------------------------------------------------------------------------------

EPS = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n"
    b"(%pipe%touch " + MARK.encode() + b") (w) file\nshowpage\n%%EOF\n"
)


def png(width: int, height: int, rows: int | None = None) -> bytes:
    """Return a black PNG that says that it has so many pixels, and holds so many rows."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    line = b"\0" + b"\0" * ((width + 7) // 8)
    body = zlib.compress(line * (height if rows is None else rows), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def pictures(seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """Yield names and bytes of pictures that are none, or that say too much of themselves."""
    yield "EPS", EPS
    yield (
        "EPS behind a preview",
        b"\xc5\xd0\xd3\xc6" + struct.pack("<IIIIIIH", 30, 200, *[0] * 5) + EPS,
    )
    for width, height in ((1, 5000), (1, 20000), (20000, 1), (5000, 3), (30000, 4)):
        yield f"{width}x{height}", png(width, height)
    for width, height in ((60000, 60000), (2**31 - 1, 1), (1, 2**31 - 1), (0, 0), (40000, 1)):
        yield f"{width}x{height}, few rows", png(width, height, rows=1)
    yield "empty", b""
    yield "text", b"<html>not found</html>"
    yield "zip", b"PK\x03\x04" + b"\0" * 60
    yield "pickle", pickle.dumps(Evil())
    yield "PSD", b"8BPS\0\1" + b"\0" * 60
    yield "FITS", b"SIMPLE  =                    T" + b" " * 80
    yield "PPM of 10^9", b"P6 1000000000 1000000000 255\n"
    yield (
        "BMP of -1",
        b"BM" + struct.pack("<IHHIIiiHH", 60, 0, 0, 54, 40, -1, -1, 1, 24) + b"\0" * 28,
    )
    whole = png(64, 48)
    for place, damaged in enumerate(flipped(whole, seed, 12)):
        yield f"PNG, byte flipped {place}", damaged
    for size in (10, 40, len(whole) // 2, len(whole) - 6):
        yield f"PNG, first {size} bytes", whole[:size]


def flipped(content: bytes, seed: int, count: int) -> Iterator[bytes]:
    """Yield so many copies of some bytes, each with one bit flipped."""
    chance = random.Random(seed)
    for _ in range(count):
        place, bit = chance.randrange(len(content)), chance.randrange(8)
        changed = bytearray(content)
        changed[place] ^= 1 << bit
        yield bytes(changed)


# --- YAML --------------------------------------------------------------------------------------


def yamls() -> Iterator[tuple[str, str | bytes]]:
    """Yield names and texts of YAML that no configuration is."""
    laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
    )
    yield "anchors of anchors", laughs
    merges = "a0: &a0 {x: 1}\n" + "".join(
        f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 9)
    )
    yield "merges of merges", merges
    yield "an anchor in itself", "model: &m [*m]\n"
    for depth in (100, 3000, 100_000):
        yield f"{depth} lists", "model: " + "[" * depth + "]" * depth
        yield f"{depth} mappings", "model: " + "{a: " * depth + "1" + "}" * depth
    yield "3000 indented", "".join(" " * n + f"k{n}:\n" for n in range(3000))
    yield "keys twice", "model: {class_path: DLG, class_path: IDLG}\n"
    yield "section twice", "model: {}\nmodel: {}\n"
    for tag in TAGS:
        yield tag[:34], f"model: {tag}\n"
    yield "0xFF", b"model: \xff\xfe\n"
    yield "latin-1", "experiment: f\u00fcr\n".encode("latin-1")
    yield "zeros", b"model: \0\0\0\n"
    yield from TEXTS.items()


TAGS = (
    "!!python/object/apply:os.system [touch ran]",
    "!!python/name:os.system",
    "!!python/object/new:os.system [touch ran]",
    "!!python/module:os",
    "!x y",
)
TEXTS = {
    "empty": "",
    "braces": "{}",
    "list": "[]",
    "number": "3",
    "null": "~",
    "comment": "# x\n",
    "two documents": "a: 1\n---\nb: 2\n",
    "a tab": "model:\n\tclass_path: x\n",
    "5000 digits": f"seed_everything: {'9' * 5000}",
    "a date": "seed_everything: 2001-99-99\n",
    "quoted": 'model: "',
    "key of a list": "? [a, b]\n: 1\n",
    "key of a mapping": "? {a: b}\n: 1\n",
    "colons": "model: a: b: c\n",
    "an alias of nothing": "model: *m\n",
}


# --- pickles -----------------------------------------------------------------------------------


def pickles(folder: Path) -> Iterator[tuple[str, Path]]:
    """Write files that would run something if they were unpickled, and yield them."""
    contents: dict[str, Any] = {
        "bare": Evil(),
        "update": {"update": Evil(), "num_samples": 1, "labels": None, "image_shape": (3, 8, 8)},
        "inside": {"update": {"w": torch.zeros(2), "x": Evil()}, "num_samples": None,
                   "labels": None, "image_shape": (3, 8, 8)},
        "state_dict": {"state_dict": {"w": torch.zeros(2)}, "hyper_parameters": Evil()},
        "checkpoint": {"state_dict": {}, "client_index": 0, "callbacks": Evil()},
    }  # fmt: skip
    for name, content in contents.items():
        for is_zipped in (True, False):
            path = folder / f"{name}{'' if is_zipped else '_legacy'}.pt"
            torch.save(content, path, _use_new_zipfile_serialization=is_zipped)
            yield path.stem, path
    path = folder / "plain.pt"
    path.write_bytes(pickle.dumps(Evil()))
    yield "plain", path


# --- JSON and lines of it ----------------------------------------------------------------------

Change = Callable[[Any], None]


def damaged_json(content: dict[str, Any], seed: int, count: int) -> Iterator[tuple[str, str]]:
    """Yield JSON in which one value has become another, has gone, or stands twice."""
    chance = random.Random(seed)
    others: tuple[Any, ...] = (
        *("text", -1, 2**70, 1e308, True, [], {}, [[[]]], {"a": {"a": {}}}, [1, "x"], "\0", "<b>"),
        None,
    )
    for _ in range(count):
        changed = json.loads(json.dumps(content))
        holder, key = chance.choice(list(places(changed)))
        other = chance.choice((*others, ...))
        if other is ... and isinstance(holder, dict):
            del holder[key]
        else:
            holder[key] = "text" if other is ... else other
        yield f"{key}={str(other)[:20]}", json.dumps(changed, indent=2)
    text = json.dumps(content, indent=2)
    yield "1e999", text.replace(": 0", ": 1e999", 1)
    yield "cut off", text[: len(text) // 2]
    yield "nested", '{"a": ' * 100_000
    yield "lists", "[" * 100_000
    yield "twice", text.replace("{", '{"schema_version": 1, "schema_version": 1,', 1)


def places(content: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every place within nested lists and dictionaries: what holds it, and its key."""
    entries = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in list(entries):
        yield content, key
        if isinstance(value, dict | list):
            yield from places(value)


def save_picture(path: Path, content: bytes) -> None:
    """Write a picture of a stranger into a folder of pictures, beside good ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    for number in range(4):
        Image.new("RGB", (24, 20), (40 * number, 90, 120)).save(path.with_name(f"b{number}.png"))
