"""Readers of the two file formats: MNIST's IDX and CIFAR's binary records.

Both are parsed with numpy from plain bytes. Nothing here can run code from a file.
"""

import gzip
import math
import tarfile
import zlib
from pathlib import Path

import numpy as np

from experiments.errors import UserError

_UNSIGNED_BYTE = 0x08
_PIXELS = 3 * 32 * 32
_BROKEN = (EOFError, OSError, zlib.error, tarfile.TarError)


def read_idx(path: Path) -> np.ndarray:
    """Read an IDX file of unsigned bytes, gzipped or not.

    Layout, big-endian: two zero bytes, the type code (0x08), the number of dimensions, one 32-bit
    size per dimension, then the values in C order.

    Args:
        path: The file.

    Returns:
        An array of ``uint8`` with the stored shape.

    Raises:
        UserError: If the file is unreadable, is not IDX or has the wrong length.
    """
    raw = _read_bytes(path)
    if len(raw) < 4 or raw[:2] != b"\0\0":
        raise UserError(f"{path} is not an IDX file (it does not begin with two zero bytes)")
    if raw[2] != _UNSIGNED_BYTE:
        raise UserError(f"{path} holds IDX type 0x{raw[2]:02x}; only unsigned bytes (0x08) fit")
    start = 4 + 4 * raw[3]
    if len(raw) < start:
        raise UserError(f"{path} is truncated: its header is incomplete")
    shape = tuple(int(size) for size in np.frombuffer(raw, ">u4", count=raw[3], offset=4))
    expected = start + math.prod(shape)
    if len(raw) != expected:
        fault = "truncated" if len(raw) < expected else "too long"
        raise UserError(f"{path} is {fault}: {len(raw)} bytes where its header says {expected}")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def read_cifar(
    path: Path, folder: str, members: tuple[str, ...], label_bytes: int, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Read records of CIFAR's binary distribution, from the archive or from its unpacked folder.

    A record is ``label_bytes`` labels (CIFAR-100 stores the coarse one first) followed by 3072
    pixels: the red, green and blue planes, each 32 x 32 in row order.

    Args:
        path: The ``.tar.gz`` archive, or the folder that it unpacks to.
        folder: Name of the folder inside the archive.
        members: Files to read, in order.
        label_bytes: Labels per record, 1 or 2; the last is the one returned.
        classes: Number of classes; a larger label means a damaged file.

    Returns:
        Images ``(n, 3, 32, 32)`` and labels ``(n,)``, both ``uint8``.

    Raises:
        UserError: If a file is missing, damaged or does not hold whole records.
    """
    blobs = _folder_members(path, members) if path.is_dir() else _tar_members(path, folder, members)
    size = label_bytes + _PIXELS
    images, labels = [], []
    for name, blob in zip(members, blobs, strict=True):
        if not blob or len(blob) % size:
            raise UserError(
                f"{name} in {path} is truncated: {len(blob)} bytes are not a whole number of "
                f"{size}-byte records"
            )
        records = np.frombuffer(blob, np.uint8).reshape(-1, size)
        images.append(records[:, label_bytes:].reshape(-1, 3, 32, 32))
        labels.append(records[:, label_bytes - 1])
        if (largest := int(labels[-1].max())) >= classes:
            raise UserError(f"{name} in {path} is damaged: label {largest} of {classes} classes")
    return np.concatenate(images), np.concatenate(labels)


def _read_bytes(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except _BROKEN as fault:
        raise UserError(f"cannot read {path}: {_reason(fault)}") from fault


def _folder_members(path: Path, members: tuple[str, ...]) -> list[bytes]:
    return [_read_bytes(path / name) for name in members]


def _tar_members(path: Path, folder: str, members: tuple[str, ...]) -> list[bytes]:
    blobs = []
    try:
        with tarfile.open(path) as archive:
            for name in members:
                stream = archive.extractfile(f"{folder}/{name}")
                if stream is None:
                    raise UserError(f"{folder}/{name} in {path} is not a file")
                blobs.append(stream.read())
    except KeyError as fault:
        raise UserError(f"{path} does not contain {folder}/{name}") from fault
    except _BROKEN as fault:
        raise UserError(f"cannot read {path}: {_reason(fault)}") from fault
    return blobs


def _reason(fault: BaseException) -> str:
    return getattr(fault, "strerror", None) or str(fault) or type(fault).__name__
