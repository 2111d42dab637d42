"""Add restart markers to a JPEG, one at the end of each row of MCUs, without changing a pixel.

The decoder can then begin at any row, so a crop costs only its own rows. Pixels stay the same,
because only three parts of the entropy-coded stream change: the first DC difference of each
component in a row (it starts from 0), the byte alignment, and the markers. All other bits are
copied. Codes are parsed only to find where a row ends.

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
"""Segments that are kept: quantisation tables, and JFIF and Adobe, which define the colours."""

# T.81 table K.3: a code for every size of a DC difference.
_STANDARD_DC_COUNTS = bytes([0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0])
_STANDARD_DC_SIZES = bytes(range(12))
_DC_SIZES = 12

_WINDOW = 12
"""Number of bits in one table lookup: most AC symbols take fewer than half of them."""

_IN_WINDOW = (1 << _WINDOW) - 1

_BLOCK_BYTES = 264
"""Upper bound for a block, even a damaged one: 64 codes of 16 bits with 15 bits of value each."""

U8 = npt.NDArray[np.uint8]


class _Frame(NamedTuple):
    """Header values for the compiled code."""

    mcus_per_row: int
    rows: int
    blocks: npt.NDArray[np.int64]
    """(blocks of one MCU, 3): component, DC table, AC table."""
    old_interval: int


class _Tables(NamedTuple):
    """Huffman tables by number, DC before AC."""

    lookups: npt.NDArray[np.uint16]
    """(8, 65536) symbol << 5 | length of the code at the start of the next 16 bits; 0 for none."""
    strides: npt.NDArray[np.uint16]
    """(4, 4096) the AC symbols that lie completely in the next 12 bits, indexed by these bits. Bits
    0 to 3: the bits that the symbols take with their values; 4 to 10: the number of coefficients;
    11: 1 if the block ends there."""
    codes: npt.NDArray[np.int64]
    """(4, 256, 2) code and length of the DC symbols in the output."""
    is_new: npt.NDArray[np.bool_]
    """(4,) True for a DC table that the output replaces."""


def add_restart_markers(jpeg: bytes) -> bytes | None:
    """Return the same image with a restart marker after each row of MCUs.

    Comments, EXIF and colour profiles are left out.

    Args:
        jpeg: a JPEG file.

    Returns:
        The file; None if it is not a sequential Huffman JPEG with one scan and 1 or 3 components.
        Such a file should be kept as it is.
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
    offset = 2
    while True:
        if data[offset] != 0xFF:
            return None
        marker = int(data[offset + 1])
        if marker == 0xFF:  # a fill byte
            offset += 1
            continue
        length = int(data[offset + 2]) << 8 | int(data[offset + 3])
        segment = data[offset : offset + 2 + length].tobytes()
        if len(segment) != 2 + length:
            return None
        offset += 2 + length
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
    stream = data[offset:]
    plain = np.zeros((len(stream) + _BLOCK_BYTES) & ~3, dtype=np.uint8)
    size = _unstuff(stream, plain)
    if size < 0:
        return None
    output = np.empty(len(data) * 2 + 64 * layout.rows + 1024, dtype=np.uint8)
    length = _transcode(
        plain,
        plain.view(">u4").astype(np.int64),
        size,
        layout.blocks,
        layout.mcus_per_row,
        layout.rows,
        layout.old_interval,
        *_compiled_tables(tables),
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
    """Return class and number (0x00 to 0x13) -> (number of codes per length, symbols)."""
    tables = {}
    while content:
        counts = content[1:17]
        total = sum(counts)
        tables[content[0]] = (counts, content[17 : 17 + total])
        content = content[17 + total :]
    return tables


def _layout(frame: bytes, scan: bytes, old_interval: int) -> _Frame | None:
    """Read the frame and scan headers; return None if this module does not support them."""
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


def _compiled_tables(tables: dict[int, tuple[bytes, bytes]]) -> _Tables:
    """Return the tables for the compiled code; names from 0x100 on belong to the output.

    Raises:
        ValueError: if a table has fewer symbols than codes.
    """
    made = _Tables(
        lookups=np.zeros((8, 1 << 16), dtype=np.uint16),
        strides=np.zeros((4, 1 << _WINDOW), dtype=np.uint16),
        codes=np.zeros((4, 256, 2), dtype=np.int64),
        is_new=np.zeros(4, dtype=np.bool_),
    )
    for name, (counts, values) in tables.items():
        if sum(counts) > len(values):
            raise ValueError("a Huffman table ends early")
        number = name & 3
        table = np.frombuffer(counts, dtype=np.uint8), np.frombuffer(values, dtype=np.uint8)
        if name & 0x100:
            _fill_codes(*table, made.codes[number])
            made.is_new[number] = tables[number] != (counts, values)
            continue
        lookup = made.lookups[(name >> 4) * 4 + number]
        _fill_lookup(*table, lookup)
        if name >> 4:
            _fill_strides(lookup, made.strides[number])
    return made


@compiled()
def _fill_codes(counts: U8, values: U8, codes: npt.NDArray[np.int64]) -> None:
    code = offset = 0
    for length in range(1, 17):
        for _ in range(counts[length - 1]):
            codes[values[offset], 0] = code
            codes[values[offset], 1] = length
            code += 1
            offset += 1
        code <<= 1


@compiled()
def _fill_lookup(counts: U8, values: U8, lookup: npt.NDArray[np.uint16]) -> None:
    code = offset = 0
    for length in range(1, 17):
        for _ in range(counts[length - 1]):
            first = code << (16 - length)
            lookup[first : first + (1 << (16 - length))] = np.int64(values[offset]) << 5 | length
            code += 1
            offset += 1
        code <<= 1


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
def _copy(output: U8, state: npt.NDArray[np.int64], plain: U8, start: int, end: int) -> None:
    """Append the bits from `start` to `end`."""
    offset, pending, held = state[0], state[1], state[2]
    bit = start
    while bit + 8 <= end:
        word = np.int64(plain[bit >> 3]) << 8 | np.int64(plain[(bit >> 3) + 1])
        pending = pending << 8 | (word >> (8 - (bit & 7)) & 0xFF)
        byte = pending >> held
        pending &= (1 << held) - 1
        output[offset] = byte
        offset += 1
        if byte == 0xFF:
            output[offset] = 0
            offset += 1
        bit += 8
    state[0], state[1] = offset, pending
    _put(output, state, _peek(plain, bit) >> (16 - (end - bit)), end - bit)


@compiled()
def _fill_strides(lookup: npt.NDArray[np.uint16], strides: npt.NDArray[np.uint16]) -> None:
    for window in range(1 << _WINDOW):
        taken = coefficients = ends = 0
        while ends == 0 and coefficients < 64:
            entry = np.int64(lookup[(window << (16 - _WINDOW + taken)) & 0xFFFF])
            length, symbol = entry & 31, entry >> 5
            if length == 0 or taken + length + (symbol & 15) > _WINDOW:
                break
            taken += length + (symbol & 15)
            if symbol & 15 == 0 and symbol != 0xF0:
                ends = 1
            else:
                coefficients += (symbol >> 4) + 1
        strides[window] = ends << 11 | coefficients << 4 | taken


@compiled()
def _unstuff(stream: U8, plain: U8) -> int:
    """Remove stuffed zeros and restart markers. Whole bytes are removed, so alignment is kept.

    Returns:
        Bytes written, or -1 if the stream ends within a marker.
    """
    size = 0
    offset = 0
    while offset < len(stream):
        byte = stream[offset]
        offset += 1
        if byte == 0xFF:
            if offset >= len(stream):
                return -1
            follower = stream[offset]
            offset += 1
            if follower != 0:
                if 0xD0 <= follower <= 0xD7:
                    continue
                break
        plain[size] = byte
        size += 1
    return size


@compiled()
def _transcode(
    plain: U8,
    words: npt.NDArray[np.int64],
    size: int,
    blocks: npt.NDArray[np.int64],
    mcus_per_row: int,
    rows: int,
    old_interval: int,
    lookups: npt.NDArray[np.uint16],
    strides: npt.NDArray[np.uint16],
    codes: npt.NDArray[np.int64],
    is_new: npt.NDArray[np.bool_],
    output: U8,
) -> int:
    """Write the entropy-coded rows with markers between them.

    `plain` is the stream without stuffing, with zeros from `size` on. `words` holds the same bits,
    32 in each number, the first bit highest.

    Returns:
        Bytes written, or -1 if the stream does not match its header.
    """
    state = np.zeros(3, dtype=np.int64)
    old_dc = np.zeros(4, dtype=np.int64)
    new_dc = np.zeros(4, dtype=np.int64)
    bit = copied = 0
    # The lowest `held` bits of `buffer` come next. Before a code is read there are at least 32,
    # of which it takes at most 31. So each code costs one shift and one table lookup.
    buffer = held = word = 0
    mcu = 0
    for row in range(rows):
        new_dc[:] = 0
        for _ in range(mcus_per_row):
            if old_interval > 0 and mcu > 0 and mcu % old_interval == 0:
                old_dc[:] = 0
                _copy(output, state, plain, copied, bit)
                bit = copied = (bit + 7) & ~7
                word = bit >> 5
                held = 32 - (bit & 31)
                buffer = words[word]
                word += 1
            mcu += 1
            for b in range(len(blocks)):
                component, dc_table, ac_table = blocks[b, 0], blocks[b, 1], blocks[b, 2]
                if held < 32:
                    buffer = (buffer & ((1 << held) - 1)) << 32 | words[word]
                    word += 1
                    held += 32
                entry = lookups[dc_table, buffer >> (held - 16) & 0xFFFF]
                length, count = np.int64(entry & 31), np.int64(entry >> 5)
                if length == 0 or count > 11:
                    return -1
                held -= length + count
                difference = 0
                if count > 0:
                    difference = buffer >> held & ((1 << count) - 1)
                    if difference < (1 << (count - 1)):
                        difference -= (1 << count) - 1
                value = old_dc[component] + difference
                new_difference = value - new_dc[component]
                old_dc[component] = new_dc[component] = value
                if new_difference != difference or is_new[dc_table]:
                    _copy(output, state, plain, copied, bit)
                    copied = 32 * word - held
                    magnitude = abs(new_difference)
                    count = 0
                    while magnitude >> count:
                        count += 1
                    if count > 11:
                        return -1
                    _put(output, state, codes[dc_table, count, 0], codes[dc_table, count, 1])
                    if new_difference < 0:
                        new_difference += (1 << count) - 1
                    _put(output, state, new_difference, count)
                k = 1
                while k < 64:
                    if held < 32:
                        buffer = (buffer & ((1 << held) - 1)) << 32 | words[word]
                        word += 1
                        held += 32
                    stride = np.int64(strides[ac_table, buffer >> (held - _WINDOW) & _IN_WINDOW])
                    taken, coefficients, ends = stride & 15, stride >> 4 & 127, stride >> 11
                    if taken > 0 and k + coefficients + ends <= 64:
                        held -= taken
                        if ends:
                            break
                        k += coefficients
                        continue
                    entry = lookups[4 + ac_table, buffer >> (held - 16) & 0xFFFF]
                    length, symbol = np.int64(entry & 31), np.int64(entry >> 5)
                    if length == 0:
                        return -1
                    held -= length + (symbol & 15)
                    if symbol & 15 == 0 and symbol != 0xF0:
                        break
                    k += (symbol >> 4) + 1
                bit = 32 * word - held
                if bit > 8 * size:
                    return -1
        _copy(output, state, plain, copied, bit)
        copied = bit
        if state[2] > 0:
            _put(output, state, (1 << (8 - state[2])) - 1, 8 - state[2])
        if row < rows - 1:
            output[state[0]] = 0xFF
            output[state[0] + 1] = 0xD0 + (row & 7)
            state[0] += 2
    return state[0]
