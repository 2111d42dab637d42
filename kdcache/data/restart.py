"""Restart markers for JPEGs, without a change of any pixel: one at the end of each row of MCUs.

With them the decoder can begin at any row: a crop then costs what it shows, not the whole image.
Pixels stay the same because only the entropy-coded stream is written anew: the DC differences
(each row starts from 0), the byte alignment and the markers. AC codes are copied bit by bit.

References:
    ITU-T T.81 (JPEG), sections B.2 (markers), E.1.4 and E.2.4 (restart), F.1.2 (Huffman codes).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kdcache.compiled import compiled

_SOI, _EOI, _SOS, _DQT, _DHT, _DRI = 0xD8, 0xD9, 0xDA, 0xDB, 0xC4, 0xDD
_SEQUENTIAL = {0xC0, 0xC1}
_KEPT = {_DQT, 0xE0, 0xEE}
"""Quantisation, and the JFIF and Adobe segments: they decide how colours are meant."""

# T.81 table K.3: a code for every size of a DC difference.
_STANDARD_DC_COUNTS = bytes([0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0])
_STANDARD_DC_SIZES = bytes(range(12))
_DC_SIZES = 12

U8 = npt.NDArray[np.uint8]


class _Frame(NamedTuple):
    """What the header says, as the compiled code takes it."""

    mcus_per_row: int
    rows: int
    blocks: npt.NDArray[np.int64]
    """(blocks of one MCU, 3): component, DC table, AC table."""
    old_interval: int


def add_restart_markers(jpeg: bytes) -> bytes | None:
    """Return the same image with a restart marker after each row of MCUs.

    Comments, EXIF and colour profiles are left out.

    Args:
        jpeg: a JPEG file.

    Returns:
        The file, or None where it is not a sequential Huffman JPEG of one scan with 1 or 3
        components, which is then to be kept as it is.
    """
    try:
        return _rewrite(np.frombuffer(jpeg, dtype=np.uint8))
    except (
        IndexError,
        KeyError,
        ValueError,
    ):  # a header that ends early, or names what is not there
        return None


def _rewrite(data: U8) -> bytes | None:
    kept: list[bytes] = []
    tables: dict[int, tuple[bytes, bytes]] = {}
    frame: bytes | None = None
    old_interval = 0
    place = 2
    while True:
        if data[place] != 0xFF:
            return None
        marker = int(data[place + 1])
        if marker == 0xFF:  # a fill byte
            place += 1
            continue
        length = int(data[place + 2]) << 8 | int(data[place + 3])
        segment = data[place : place + 2 + length].tobytes()
        if len(segment) != 2 + length:
            return None
        place += 2 + length
        if marker == _DHT:
            tables |= _huffman_tables(segment[4:])
        elif marker == _DRI:
            old_interval = segment[4] << 8 | segment[5]
        elif marker in _SEQUENTIAL:
            frame = segment
            kept.append(segment)
        elif marker in _KEPT:
            kept.append(segment)
        elif marker == _SOS:
            break
        elif 0xC0 <= marker <= 0xCF:  # progressive, lossless or arithmetic
            return None
    if frame is None:
        return None
    layout = _layout(frame, segment, old_interval)
    if layout is None:
        return None
    for name in {int(table) for table in layout.blocks[:, 1]}:
        if len(set(tables[name][1]) & set(range(_DC_SIZES))) < _DC_SIZES:
            # An optimised table may lack the sizes that a row's first difference needs.
            new_table = (_STANDARD_DC_COUNTS, _STANDARD_DC_SIZES)
        else:
            new_table = tables[name]
        tables[name | 0x100] = new_table
    lookups = np.zeros((8, 1 << 16), dtype=np.uint16)
    codes = np.zeros((4, 256, 2), dtype=np.int64)
    for name, (counts, values) in tables.items():
        if name & 0x100:
            _, codes[name & 3] = _expand(counts, values)
        else:
            lookups[(name >> 4) * 4 + (name & 3)], _ = _expand(counts, values)
    output = np.empty(len(data) * 2 + 64 * layout.rows + 1024, dtype=np.uint8)
    length = _transcode(
        data[place:],
        layout.blocks,
        layout.mcus_per_row,
        layout.rows,
        layout.old_interval,
        lookups,
        codes,
        output,
    )
    if length < 0:
        return None
    names = sorted(name for name in tables if not name & 0x100)
    for name in names:
        counts, values = tables.get(name | 0x100, tables[name]) if name < 4 else tables[name]
        size = 3 + len(counts) + len(values)
        kept.append(bytes([0xFF, _DHT, size >> 8, size & 255, name]) + counts + values)
    interval = layout.mcus_per_row
    kept.append(bytes([0xFF, _DRI, 0, 4, interval >> 8, interval & 255]))
    head = bytes([0xFF, _SOI]) + b"".join(kept) + segment
    return head + output[:length].tobytes() + bytes([0xFF, _EOI])


def _huffman_tables(content: bytes) -> dict[int, tuple[bytes, bytes]]:
    """Return class and number (0x00 to 0x13) -> (codes of each length, symbols)."""
    tables = {}
    while content:
        counts = content[1:17]
        total = sum(counts)
        tables[content[0]] = (counts, content[17 : 17 + total])
        content = content[17 + total :]
    return tables


def _layout(frame: bytes, scan: bytes, old_interval: int) -> _Frame | None:
    """Read the frame and scan headers; None where they are of another kind."""
    precision, components = frame[4], frame[9]
    height, width = frame[5] << 8 | frame[6], frame[7] << 8 | frame[8]
    if precision != 8 or components not in (1, 3) or scan[4] != components or height == 0:
        return None
    if scan[5 + 2 * components : 8 + 2 * components] != bytes([0, 63, 0]):
        return None
    sampling = {
        frame[10 + 3 * c]: (frame[11 + 3 * c] >> 4, frame[11 + 3 * c] & 15)
        for c in range(components)
    }
    horizontal = max(h for h, _ in sampling.values()) if components > 1 else 1
    vertical = max(v for _, v in sampling.values()) if components > 1 else 1
    blocks = []
    for c in range(components):
        name, table = scan[5 + 2 * c], scan[6 + 2 * c]
        h, v = sampling[name] if components > 1 else (1, 1)
        blocks += [(c, table >> 4, table & 15)] * (h * v)
    return _Frame(
        mcus_per_row=-(-width // (8 * horizontal)),
        rows=-(-height // (8 * vertical)),
        blocks=np.array(blocks, dtype=np.int64),
        old_interval=old_interval,
    )


def _expand(counts: bytes, values: bytes) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.int64]]:
    """Return a table's decoding by the next 16 bits, symbol << 5 | length, and its codes.

    Returns:
        (65536,) lookup, 0 where no code begins so, and (256, 2) code and length by symbol.
    """
    lookup = np.zeros(1 << 16, dtype=np.uint16)
    codes = np.zeros((256, 2), dtype=np.int64)
    code = place = 0
    for length, count in enumerate(counts, start=1):
        for _ in range(count):
            first = code << (16 - length)
            lookup[first : first + (1 << (16 - length))] = values[place] << 5 | length
            codes[values[place]] = code, length
            code += 1
            place += 1
        code <<= 1
    return lookup, codes


@compiled()
def _peek(data: U8, bit: int) -> int:
    """Return the 16 bits that begin at `bit`."""
    byte = bit >> 3
    word = (np.int64(data[byte]) << 16) | (np.int64(data[byte + 1]) << 8) | data[byte + 2]
    return (word >> (8 - (bit & 7))) & 0xFFFF


@compiled()
def _put(output: U8, state: npt.NDArray[np.int64], bits: int, count: int) -> None:
    """Append up to 16 bits; state is (bytes written, pending bits, how many are pending)."""
    state[1] = (state[1] << count) | bits
    state[2] += count
    while state[2] >= 8:
        state[2] -= 8
        byte = (state[1] >> state[2]) & 0xFF
        output[state[0]] = byte
        state[0] += 1
        if byte == 0xFF:
            output[state[0]] = 0
            state[0] += 1
    state[1] &= (1 << state[2]) - 1


@compiled()
def _transcode(
    stream: U8,
    blocks: npt.NDArray[np.int64],
    mcus_per_row: int,
    rows: int,
    old_interval: int,
    lookups: npt.NDArray[np.uint16],
    codes: npt.NDArray[np.int64],
    output: U8,
) -> int:
    """Write the entropy-coded rows with markers between them.

    Returns:
        Bytes written, or -1 where the stream is not what its header says.
    """
    # Without stuffed zeros; restart markers are left out, their alignment is kept by whole bytes.
    plain = np.zeros(len(stream) + 8, dtype=np.uint8)
    size = 0
    place = 0
    while place < len(stream):
        byte = stream[place]
        place += 1
        if byte == 0xFF:
            if place >= len(stream):
                return -1
            follower = stream[place]
            place += 1
            if follower != 0:
                if 0xD0 <= follower <= 0xD7:
                    continue
                break
        plain[size] = byte
        size += 1
    state = np.zeros(3, dtype=np.int64)
    old_dc = np.zeros(4, dtype=np.int64)
    new_dc = np.zeros(4, dtype=np.int64)
    bit = 0
    mcu = 0
    for row in range(rows):
        new_dc[:] = 0
        for _ in range(mcus_per_row):
            if old_interval > 0 and mcu > 0 and mcu % old_interval == 0:
                old_dc[:] = 0
                bit = (bit + 7) & ~7
            mcu += 1
            for b in range(len(blocks)):
                component, dc_table, ac_table = blocks[b, 0], blocks[b, 1], blocks[b, 2]
                entry = lookups[dc_table, _peek(plain, bit)]
                length, count = np.int64(entry & 31), np.int64(entry >> 5)
                if length == 0 or count > 11:
                    return -1
                bit += length
                if count > 0:
                    extra = _peek(plain, bit) >> (16 - count)
                    bit += count
                    if extra < (1 << (count - 1)):
                        extra -= (1 << count) - 1
                    old_dc[component] += extra
                difference = old_dc[component] - new_dc[component]
                new_dc[component] = old_dc[component]
                magnitude = abs(difference)
                count = 0
                while magnitude >> count:
                    count += 1
                if count > 11:
                    return -1
                _put(output, state, codes[dc_table, count, 0], codes[dc_table, count, 1])
                if difference < 0:
                    difference += (1 << count) - 1
                _put(output, state, difference, count)
                first = bit
                k = 1
                while k < 64:
                    entry = lookups[4 + ac_table, _peek(plain, bit)]
                    length, symbol = np.int64(entry & 31), np.int64(entry >> 5)
                    if length == 0:
                        return -1
                    bit += length + (symbol & 15)
                    if symbol & 15 == 0:
                        if symbol != 0xF0:
                            break
                        k += 16
                    else:
                        k += (symbol >> 4) + 1
                    if bit > 8 * size:
                        return -1
                if bit > 8 * size:
                    return -1
                while first < bit:
                    count = min(16, bit - first)
                    _put(output, state, _peek(plain, first) >> (16 - count), count)
                    first += count
        if state[2] > 0:
            _put(output, state, (1 << (8 - state[2])) - 1, 8 - state[2])
        if row < rows - 1:
            output[state[0]] = 0xFF
            output[state[0] + 1] = 0xD0 + (row & 7)
            state[0] += 2
    return state[0]
