"""Machine code that was compiled before, put into memory where it can run.

LLVM has a linker, too, but loading LLVM takes longer than anything else that a process does with code that is compiled
already. What is emitted for a process, code that may lie anywhere, needs little: its sections are put side by side, and
addresses are written where they are asked for ("ELF-64 Object File Format", 1998; "System V Application Binary
Interface, AMD64 Supplement").
"""

from __future__ import annotations

import ctypes
import functools
import mmap
from typing import Any

import numpy as np

_HEAD = np.dtype([
    ("magic", "S7"), ("system", "V9"), ("type", "<u2"), ("machine", "<u2"), ("version", "<u4"), ("entry", "<u8"),
    ("programs", "<u8"), ("sections", "<u8"), ("flags", "<u4"), ("sizes", "<u2", 4), ("count", "<u2"), ("names", "<u2"),
])  # fmt: skip
_SECTION = np.dtype([
    ("name", "<u4"), ("type", "<u4"), ("flags", "<u8"), ("address", "<u8"), ("offset", "<u8"), ("size", "<u8"),
    ("link", "<u4"), ("info", "<u4"), ("align", "<u8"), ("entry", "<u8"),
])  # fmt: skip
_SYMBOL = np.dtype([
    ("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2"), ("value", "<u8"), ("size", "<u8"),
])  # fmt: skip
_RELOCATION = np.dtype([("offset", "<u8"), ("type", "<u4"), ("symbol", "<u4"), ("addend", "<i8")])

_RELOCATABLE, _X86_64 = 1, 62
_DATA, _SYMBOLS, _RELOCATIONS, _ZEROS = 1, 2, 4, 8
_WRITABLE, _IN_MEMORY = 1, 2
_FUNCTION = 2
_WHOLE_ADDRESS = 1

_mappings: list[mmap.mmap] = []  # code is never unloaded


def link(code: bytes) -> dict[str, int] | None:
    """Load an object file, and tell where its functions are.

    Parameters
    ----------
    code : bytes
        An object file as LLVM emits it. What it needs of others are symbols of this process.

    Returns
    -------
    dict of str to int, or None
        The address of each function that is not internal. None if it takes LLVM to link this: it is for another
        processor or system, asks for parts of addresses, or for what this process does not have.
    """
    head = np.frombuffer(code, _HEAD, 1)[0]
    if (head["magic"], head["type"], head["machine"]) != (b"\x7fELF\x02\x01\x01", _RELOCATABLE, _X86_64):
        return None
    sections = np.frombuffer(code, _SECTION, head["count"], head["sections"])
    places, fixed, size = _places(sections)
    mapping = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory = np.frombuffer(mapping, np.uint8)
    base = memory.ctypes.data
    (table,) = sections[sections["type"] == _SYMBOLS]
    symbols, addresses = _symbols(code, table, sections[table["link"]], {n: base + p for n, p in places.items()})
    for number, place in places.items():
        if sections[number]["type"] == _DATA:
            memory[place : place + int(sections[number]["size"])] = _content(code, sections[number], np.uint8)
    for section in sections[sections["type"] == _RELOCATIONS]:
        if int(section["info"]) in places:
            place, asked = places[int(section["info"])], _content(code, section, _RELOCATION)
            values = addresses[asked["symbol"]]
            if (asked["type"] != _WHOLE_ADDRESS).any() or not values.all():
                return None
            values = values + asked["addend"].view(np.uint64)
            memory[place + asked["offset"].astype(np.int64)[:, None] + np.arange(8)] = values[:, None].view(np.uint8)
    if _libc().mprotect(ctypes.c_void_p(base), ctypes.c_size_t(fixed), mmap.PROT_READ | mmap.PROT_EXEC):
        return None
    _mappings.append(mapping)
    return {name: int(addresses[number]) for name, number in symbols.items()}


def _content(code: bytes, section: Any, dtype: Any) -> np.ndarray:
    return np.frombuffer(code, dtype, int(section["size"]) // np.dtype(dtype).itemsize, section["offset"])


def _places(sections: np.ndarray) -> tuple[dict[int, int], int, int]:
    """Where each section goes that is needed in memory, how much is never written, and how much it is altogether.

    What is written follows on pages of its own.
    """
    places: dict[int, int] = {}
    size = fixed = 0
    for kind in (_IN_MEMORY, _IN_MEMORY | _WRITABLE):
        for number, (of, flags) in enumerate(zip(sections["type"], sections["flags"], strict=True)):
            if of in (_DATA, _ZEROS) and flags & (_IN_MEMORY | _WRITABLE) == kind:
                places[number] = _up(size, max(int(sections[number]["align"]), 1))
                size = places[number] + int(sections[number]["size"])
        size = max(_up(size, mmap.PAGESIZE), mmap.PAGESIZE)
        fixed = fixed or size
    return places, fixed, size


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _symbols(code: bytes, table: Any, names: Any, starts: dict[int, int]) -> tuple[dict[str, int], np.ndarray]:
    """The numbers of the global functions, by name, and the address of each symbol: 0 where there is none."""
    functions = {}
    text = bytes(_content(code, names, np.uint8))
    symbols = _content(code, table, _SYMBOL)
    addresses = np.zeros(len(symbols), np.uint64)
    for number, (start, info, _, section, value, _) in enumerate(symbols.tolist()):
        name = text[start : text.index(b"\0", start)].decode()
        if section in starts:
            addresses[number] = starts[section] + value
            if info & 15 == _FUNCTION and info >> 4:  # one that is not local
                functions[name] = number
        elif section == 0 and name:
            addresses[number] = _of_process(name)
    return functions, addresses


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


@functools.cache
def _of_process(name: str) -> int:
    """The address of a function of this process, of the C library mostly; 0 if it has none of this name."""
    try:
        return ctypes.cast(getattr(_libc(), name), ctypes.c_void_p).value or 0
    except AttributeError:
        return 0
