"""Single arrays of an npz file, five times as fast as numpy's own reader: a report opens ten thousand such files."""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

_MAGIC = b"\x93NUMPY\x01\x00"  # version 1.0 of the format, the one that is written for arrays of plain types


class Archive:
    """The arrays in the content of an npz file, each unpacked when it is asked for and checked against its checksum.

    Raises:
        zipfile.BadZipFile, ValueError: it is no npz file.
    """

    def __init__(self, content: bytes):
        self._content, self._members = content, zipfile.ZipFile(io.BytesIO(content))
        self.files = [name.removesuffix(".npy") for name in self._members.namelist()]

    def fingerprint(self, name: str) -> tuple[str, int, int, int, int, bytes]:
        """What an array is packed as: equal fingerprints are equal arrays, or damaged alike.

        Raises:
            KeyError: there is no such array.
        """
        info = self._members.getinfo(f"{name}.npy")
        return name, info.flag_bits, info.compress_type, info.CRC, info.file_size, self._packed(info)

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        """An array, which may be read-only.

        Raises:
            KeyError: there is no such array. ValueError, zlib.error, zipfile.BadZipFile and what else `zipfile` raises:
                it is damaged, encrypted, or of objects.
        """
        return _array(self._member(self._members.getinfo(f"{name}.npy")))

    def _member(self, info: zipfile.ZipInfo) -> bytes:
        if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            return self._members.read(info)  # knows the other ways, or says what is wrong
        packed = self._packed(info)
        if info.compress_type == zipfile.ZIP_DEFLATED:
            unpack = zlib.decompressobj(-15)
            packed = unpack.decompress(packed, info.file_size + 1)  # never more than it claims to hold
        if len(packed) != info.file_size or zlib.crc32(packed) != info.CRC:
            raise zipfile.BadZipFile(f"{info.filename} differs from its checksum")
        return packed

    def _packed(self, info: zipfile.ZipInfo) -> bytes:
        # The header before a member repeats its name, and its extra field has a length of its own.
        lengths = self._content[info.header_offset + 26 : info.header_offset + 30]
        start = info.header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
        return self._content[start : start + info.compress_size]


def _array(content: bytes) -> npt.NDArray[Any]:
    if not content.startswith(_MAGIC):
        return np.asarray(np.lib.format.read_array(io.BytesIO(content), allow_pickle=False))
    end = len(_MAGIC) + 2 + int.from_bytes(content[len(_MAGIC) : len(_MAGIC) + 2], "little")
    shape, fortran, dtype = _layout(content[:end])
    if dtype.hasobject:
        raise ValueError("an array of Python objects is not read")
    if any(side < 0 for side in shape):
        raise ValueError(f"an array of shape {shape} cannot be")
    if not dtype.itemsize or not math.prod(shape):
        return np.empty(shape, dtype)
    values = np.frombuffer(content, dtype, math.prod(shape), end)
    return values.reshape(shape, order="F" if fortran else "C")


@lru_cache(maxsize=1024)
def _layout(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether in Fortran's order, and type. The header is a Python literal, and slow to parse."""
    stream = io.BytesIO(header)
    stream.seek(len(_MAGIC))
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)  # type: ignore[no-untyped-call]
    return shape, bool(fortran), dtype
