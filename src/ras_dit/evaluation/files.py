"""Files that are whole or not there: how every stage writes, so that it can be killed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ras_dit.errors import RASError

PART = ".part"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DiskFullError(OSError):
    """The disk is full; whatever was finished before is safe."""


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a reader, also after a crash, sees all of it or the one before.

    Raises:
        DiskFullError: If there is no room; nothing half-written is left.
        OSError: If it cannot be written for another reason.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}{PART}")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        if error.errno in _FULL:
            raise DiskFullError(
                f"no room for {str(path)!r} ({error.strerror}); nothing that was finished is lost: "
                "make room and run the same command again"
            ) from error
        raise


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write JSON; the same data give the same bytes.

    Raises:
        ValueError: If the data hold NaN or an infinity, which JSON has not.
    """
    write_bytes(path, dump(data))


def dump(data: Mapping[str, Any]) -> bytes:
    """JSON as it is stored."""
    text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False, sort_keys=True)
    return (text + "\n").encode()


def fingerprint(data: Mapping[str, Any]) -> str:
    """SHA-256 of :func:`dump`, as hexadecimal digits."""
    return hashlib.sha256(dump(data)).hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """Read a file of :func:`write_json`.

    Raises:
        RASError: If it is missing or damaged.
    """
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise RASError(f"there is no {str(path)!r}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise RASError(
            f"{str(path)!r} is damaged ({error}); remove it and run the same command again"
        ) from error
    if not isinstance(data, dict):
        raise RASError(f"{str(path)!r} holds a {type(data).__name__}; expected a mapping")
    return data


def checksum(path: Path) -> str:
    """SHA-256 of a file, or of the names and content of a folder's files."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for part in sorted(path.iterdir()):
        if part.is_file():
            digest.update(f"{part.name}\0{checksum(part)}\0".encode())
    return digest.hexdigest()


def read_checked(path: Path, sha256: str, what: str, change: str) -> bytes:
    """The content of a file that was made by the generate stage.

    Args:
        path: The file.
        sha256: What it hashes to.
        what: What it holds, for errors.
        change: What is wrong with another content, for errors.

    Raises:
        RASError: If it is missing or another.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RASError(
            f"the {what} {str(path)!r} cannot be read ({error.strerror}); run generate again"
        ) from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise RASError(
            f"the {what} {str(path)!r} {change}; remove the file, and run generate again"
        )
    return content


def sweep(folder: Path) -> None:
    """Remove what a killed run left half-written."""
    for part in folder.rglob(f"*{PART}"):
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Work alone in a folder; the lock goes with the process, however that ends.

    Raises:
        RASError: If another process is at work in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise RASError(
            f"another process is at work in {str(folder)!r}; wait for it or stop it first"
        ) from error
    try:
        yield
    finally:
        lock.release()
