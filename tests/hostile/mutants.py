"""Bytes -> bytes with a few things wrong with them, the same for the same number."""

import gzip
import io
import random
import struct
import zipfile
import zlib
from collections.abc import Callable

Mutate = Callable[[bytes, random.Random], bytes]

_INTEGERS = (
    0, 1, 2, 3, 4, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**53,
    2**63 - 1, 2**63, 2**64 - 1,
)  # fmt: skip
_FLOATS = (
    0.0, -0.0, 1.0, -1.0, 1e-45, 1e38, 1e308, float("inf"), float("-inf"), float("nan"), 0.5, 1e9, -1e9,
)  # fmt: skip
_WORDS = (
    b"-1", b"0", b"1", b"2", b"0.5", b"1e999", b"-1e308", b"NaN", b"Infinity", b".nan", b".inf", b"9" * 30,
    b"9" * 5000, b"0x" + b"f" * 5000, b"true", b"null", b"~", b'""', b"[]", b"{}", b"[" * 3000,
    b'{"a":' * 3000, b"*a", b"&a [1]", b"\xff\xfe", b"\x00", b"\xed\xa0\x80", b"'", b'"', b"\n", b"\r", b"\t",
    b",", b":", b"=", b"../../etc/passwd", b"/dev/zero", b"1:1:1:1", b"2021-13-45",
    b"!!python/name:os.system", b"<script>alert(1)</script>", b"x" * 300, b"%s%n", b"\xe2\x80\xa8", b"e",
    b"True", b"LOCAL", b"healthy", b"1, 2", b"[1, [2, [3]]]",
)  # fmt: skip


def any_bytes(content: bytes, dice: random.Random) -> bytes:
    """One to four edits anywhere: bits, bytes, numbers of every width, blocks cut out, doubled or moved, an
    end cut off.
    """
    changed = bytearray(content)
    for _ in range(dice.choice((1, 1, 1, 2, 3, 4))):
        if not changed:
            return bytes(changed)
        at = dice.randrange(len(changed))
        kind = dice.randrange(9)
        if kind == 0:
            changed[at] ^= 1 << dice.randrange(8)
        elif kind == 1:
            changed[at] = dice.randrange(256)
        elif kind in (2, 3):
            number = _number(dice)
            changed[at : at + len(number)] = number
        elif kind == 4:
            del changed[at : at + dice.choice((1, 2, 4, 16, 64))]
        elif kind == 5:
            changed[at:at] = changed[at : at + dice.choice((1, 2, 4, 16, 64))]
        elif kind == 6:
            changed[at:at] = dice.randbytes(dice.choice((1, 2, 8, 100)))
        elif kind == 7 and dice.random() < 0.3:
            del changed[at:]
        else:
            changed[at : at + 4] = bytes(4)
    return bytes(changed)


def first_bytes(n: int, *, step: int = 2) -> Mutate:
    """Numbers written over the first `n` bytes, where a binary header keeps its fields; one mutant in four as
    `any_bytes`.
    """

    def mutate(content: bytes, dice: random.Random) -> bytes:
        if dice.random() < 0.25:
            return any_bytes(content, dice)
        changed = bytearray(content)
        for _ in range(dice.choice((1, 1, 2, 3))):
            at = dice.randrange(0, min(n, len(changed)), step)
            number = _number(dice)
            changed[at : at + len(number)] = number
        return bytes(changed)

    return mutate


def text(content: bytes, dice: random.Random) -> bytes:
    """Words put in the place of others, lines and cells doubled, moved or cut out; one mutant in five as
    `any_bytes`.
    """
    if dice.random() < 0.2:
        return any_bytes(content, dice)
    changed = content
    for _ in range(dice.choice((1, 1, 2, 3))):
        lines = changed.split(b"\n")
        at = dice.randrange(len(lines))
        kind = dice.randrange(5)
        if kind == 0:
            lines.insert(dice.randrange(len(lines) + 1), lines[at])
        elif kind == 1:
            del lines[at]
        else:
            lines[at] = _other_word(lines[at], dice)
        changed = b"\n".join(lines)
    return changed


def packed(inner: Mutate) -> Mutate:
    """A gzip stream whose content is changed, with the right checksum; one in five is damaged outside."""

    def mutate(content: bytes, dice: random.Random) -> bytes:
        if dice.random() < 0.2:
            return any_bytes(content, dice)
        return gzip.compress(inner(gzip.decompress(content), dice), 1, mtime=0)

    return mutate


def packed_after(marker: bytes, inner: Mutate) -> Mutate:
    """A header with zlib data behind `marker`: the header changed by `inner`, the data, or what the data
    unpack to.
    """

    def mutate(content: bytes, dice: random.Random) -> bytes:
        head, _, body = content.partition(marker)
        where = dice.randrange(4)
        if where == 0:
            return head + marker + any_bytes(body, dice)
        if where == 1:
            return head + marker + zlib.compress(any_bytes(zlib.decompress(body), dice))
        return inner(head + marker, dice) + body

    return mutate


def archived(name_ends: str, inner: Mutate) -> Mutate:
    """A zip archive whose member (its name ends so) is changed, with the right checksum; one in four is
    damaged outside.
    """

    def mutate(content: bytes, dice: random.Random) -> bytes:
        if dice.random() < 0.25:
            return any_bytes(content, dice)
        changed = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(changed, "w") as new:
            names = [name for name in old.namelist() if name.endswith(name_ends)]
            chosen = dice.choice(names)
            for name in old.namelist():
                member = old.read(name)
                new.writestr(name, inner(member, dice) if name == chosen else member)
        return changed.getvalue()

    return mutate


def chunked(content: bytes, dice: random.Random) -> bytes:
    """A PNG one of whose chunks is changed, with the right checksum; one in four is damaged anywhere."""
    if dice.random() < 0.25:
        return any_bytes(content, dice)
    chunks, at = [], 8
    while at < len(content):
        n = int.from_bytes(content[at : at + 4], "big")
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + n]))
        at += n + 12
    which = dice.randrange(len(chunks))
    kind, data = chunks[which]
    changed = any_bytes(data, dice) if data else dice.randbytes(4)
    if kind == b"IDAT" and dice.random() < 0.5:
        changed = zlib.compress(any_bytes(zlib.decompress(data), dice))
    chunks[which] = (
        dice.choice((b"tEXt", b"iCCP", b"zTXt", b"tRNS", b"gAMA", b"PLTE", b"fcTL", b"eXIf"))
        if dice.random() < 0.2
        else kind,
        changed,
    )
    return content[:8] + b"".join(
        len(d).to_bytes(4, "big") + k + d + zlib.crc32(k + d).to_bytes(4, "big") for k, d in chunks
    )


def _number(dice: random.Random) -> bytes:
    order = dice.choice("<>")
    if dice.random() < 0.3:
        return (
            struct.pack(order + dice.choice("ef"), _narrow(dice))
            if dice.random() < 0.7
            else struct.pack(order + "d", dice.choice(_FLOATS))
        )
    width = dice.choice((1, 2, 2, 4, 4, 8))
    return (dice.choice(_INTEGERS) % 2 ** (8 * width)).to_bytes(width, "little" if order == "<" else "big")


def _narrow(dice: random.Random) -> float:
    value = dice.choice(_FLOATS)
    return value if abs(value) < 60_000 or value in (float("inf"), float("-inf")) or value != value else 1.0


def _other_word(line: bytes, dice: random.Random) -> bytes:
    starts = [0] + [i + 1 for i, c in enumerate(line) if c in b" ,:=[]{}\"'"]
    first, last = sorted((dice.choice(starts), dice.choice(starts)))
    if first == last:
        last = next((start for start in starts if start > first), len(line))
    return line[:first] + dice.choice(_WORDS) + line[max(first, last - 1) :]
