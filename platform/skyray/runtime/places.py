"""Where things lie: local paths, NFS, ``s3://`` and ``gs://`` behind one small interface.

A *place* is a local path, or ``SCHEME://NAME[?OPTIONS]``. Nothing in it is quoted or decoded: a
blank, ``#``, ``%`` or ``ü`` is that character of the file's or object's name, as in ``aws s3``.
OPTIONS say how a store is reached (``?endpoint_override=HOST:PORT&scheme=http``) and stay at the
end when names are joined; for S3 they go before ``AWS_ENDPOINT_URL`` and ``AWS_REGION``. Keys and
passwords never belong in a place: they come from the ``AWS_…`` variables, a profile or a role.

Nothing is half-written: a file appears under its name when all of it is there. A call to an object
store that fails is made again for some ten seconds.
"""

from __future__ import annotations

import io
import json
import os
import posixpath
import shutil
import tempfile
import uuid
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pyarrow import NativeFile, fs

from skyray.runtime.filesystems import Place, lance_options, lance_uri, made, resolve, split

__all__ = [
    "FileInfo", "absolute", "copy", "exists", "home", "is_local", "join", "lance_options",
    "lance_uri", "list_files", "local_copy", "local_folder", "name", "parent", "read_bytes",
    "read_json", "read_stream", "remove", "resolve", "walk", "write_bytes", "write_json",
    "write_stream",
]  # fmt: skip

_BLOCK = 1 << 25
_LISTINGS = 8  # folders of a store that are listed at once


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file that `walk` found: its place, size in bytes and, where known, time of change in ns."""

    uri: str
    size: int
    modified_ns: int | None


def home() -> str:
    """Return ``SKYRAY_HOME`` (folder, NFS path or URI) or ``.skyray`` in the working folder."""
    return os.environ.get("SKYRAY_HOME") or str(Path.cwd() / ".skyray")


# names ---------------------------------------------------------------------------------------


def is_local(uri: Place) -> bool:
    """Return whether a place is a local (or NFS) path."""
    return not split(uri)[0]


def absolute(uri: Place) -> str:
    """Return a place as workers find it, whose working folder is another."""
    scheme, path, _ = split(uri)
    return os.fspath(uri) if scheme else os.path.abspath(path)


def join(uri: Place, *parts: str) -> str:
    """Join names under a place; its options stay at the end.

    Raises
    ------
    ValueError
        If a part starts with ``/``, which would leave a URI.
    """
    scheme, path, options = split(uri)
    if scheme and any(part.startswith("/") for part in parts):
        raise ValueError(f"{os.fspath(uri)}: expected names to join, found {list(parts)}")
    return made(scheme, posixpath.join(path, *parts), options)


def name(uri: Place) -> str:
    """Return the last part of a place."""
    return posixpath.basename(split(uri)[1].rstrip("/"))


def parent(uri: Place) -> str:
    """Return the place that holds this one; a bucket, or ``/``, holds itself."""
    scheme, path, options = split(uri)
    path = path.rstrip("/")
    if scheme:
        return made(scheme, path.rpartition("/")[0] or path, options)
    return posixpath.dirname(path) or ("." if path else "/")


# reading -------------------------------------------------------------------------------------


def _info(uri: Place) -> tuple[fs.FileSystem, str, fs.FileInfo]:
    filesystem, path = resolve(uri)
    info = filesystem.get_file_info(path)
    if info.type == fs.FileType.NotFound:
        raise FileNotFoundError(f"{os.fspath(uri)}: no such file or folder")
    return filesystem, path, info


def exists(uri: Place) -> bool:
    """Return whether a file or folder is there."""
    filesystem, path = resolve(uri)
    return filesystem.get_file_info(path).type != fs.FileType.NotFound


def read_stream(uri: Place) -> NativeFile:
    """Open a file for reading in pieces, at any position; use it in a ``with`` block."""
    filesystem, path = resolve(uri)
    return filesystem.open_input_file(path)


def read_bytes(uri: Place) -> bytes:
    """Read a whole file."""
    with read_stream(uri) as stream:
        return stream.read()


def read_json(uri: Place) -> Any:
    """Read a JSON file."""
    return json.loads(read_bytes(uri))


def list_files(uri: Place) -> list[tuple[str, int]]:
    """Return (path on its filesystem, size) of a file, or of all files under a folder, sorted.

    Raises
    ------
    FileNotFoundError
        If nothing is there.
    """
    filesystem, path, info = _info(uri)
    if info.type == fs.FileType.File:
        return [(path, info.size)]
    found = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
    return sorted((f.path, f.size) for f in found if f.type == fs.FileType.File)


def walk(uri: Place) -> Iterator[FileInfo]:
    """Yield a file, or all files under a folder, in no particular order.

    A local tree is read entry by entry, an object store some folders at a time: memory does not
    grow with the tree. Links are followed, but not in a circle; a link to nothing is a file of no
    bytes, so that whoever reads it finds out.

    Raises
    ------
    FileNotFoundError
        If nothing is there.
    """
    _, path, info = _info(uri)
    if info.type != fs.FileType.Directory:
        yield FileInfo(absolute(uri), info.size or 0, info.mtime_ns)
    elif is_local(uri):
        yield from _scan(path, frozenset())
    else:
        yield from _listed(os.fspath(uri))


def _scan(folder: str, above: frozenset[tuple[int, int]]) -> Iterator[FileInfo]:
    about = os.stat(folder)
    if (about.st_dev, about.st_ino) in above:
        return
    above |= {(about.st_dev, about.st_ino)}
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _scan(entry.path, above)
            elif entry.is_file():
                about = entry.stat()
                yield FileInfo(entry.path, about.st_size, about.st_mtime_ns)
            elif entry.is_symlink():
                yield FileInfo(entry.path, 0, None)


def _listed(uri: str) -> Iterator[FileInfo]:
    def entries(folder: str) -> tuple[str, list[fs.FileInfo]]:
        filesystem, path = resolve(folder)
        return folder, filesystem.get_file_info(fs.FileSelector(path))

    folders, listings = [uri], deque[Future]()
    with ThreadPoolExecutor(_LISTINGS) as pool:
        while folders or listings:
            while folders and len(listings) < _LISTINGS:
                listings.append(pool.submit(entries, folders.pop()))
            folder, found = listings.popleft().result()
            for info in found:
                here = join(folder, info.base_name)
                if info.type == fs.FileType.Directory:
                    folders.append(here)
                else:
                    yield FileInfo(here, info.size or 0, info.mtime_ns)


@contextmanager
def local_copy(uri: Place) -> Iterator[Path]:
    """Hold a file or folder as a local path to read from: itself, or a temporary copy.

    Raises
    ------
    FileNotFoundError
        If nothing is there.
    """
    _, path, _ = _info(uri)
    if is_local(uri):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="skyray-") as folder:
        kept = Path(folder, name(uri))
        for found in walk(uri):
            target = Path(f"{kept}{resolve(found.uri)[1][len(path) :]}")
            if ".." in target.parts:
                raise ValueError(f"{found.uri}: expected a name without '..'")
            copy(found.uri, target)
        yield kept


# writing -------------------------------------------------------------------------------------


def write_bytes(uri: Place, content: bytes) -> None:
    """Write a whole file or nothing."""
    if is_local(uri):
        with write_stream(uri) as stream:
            stream.write(content)
    else:
        _upload(uri, io.BytesIO(content))


def write_json(uri: Place, value: Any) -> None:
    """Write a value as JSON, keys sorted, whole or not at all."""
    write_bytes(uri, json.dumps(value, indent=2, sort_keys=True).encode())


@contextmanager
def write_stream(uri: Place) -> Iterator[BinaryIO]:
    """Open a file for writing; it appears, whole, when the block ends without an error.

    Until then it lies beside its place under another name or, for a URI, on the local disk; never
    in memory.
    """
    path = resolve(uri)[1]
    if not is_local(uri):
        with tempfile.TemporaryFile(prefix="skyray-") as stream:
            yield stream
            stream.seek(0)
            _upload(uri, stream)
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    aside = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        with open(aside, "wb") as stream:
            yield stream
        os.replace(aside, path)
    finally:
        Path(aside).unlink(missing_ok=True)


def copy(source: Place, target: Place) -> None:
    """Copy one file, whole or not at all, a block at a time."""
    with read_stream(source) as reader:
        if is_local(source) and not is_local(target):
            _upload(target, reader)
            return
        with write_stream(target) as writer:
            shutil.copyfileobj(reader, writer, _BLOCK)


def _upload(uri: Place, source: BinaryIO | NativeFile) -> None:
    """Put a local file into an object, which appears with the last block of it.

    pyarrow completes an object when its stream is closed for whatever reason, so nothing may come
    between: a thread is not interrupted by Ctrl-C or a cancelled task.
    """
    filesystem, path = resolve(uri)

    def put() -> None:
        with filesystem.open_output_stream(path, compression=None) as stream:
            while True:
                try:
                    block = source.read(_BLOCK)
                except OSError as error:
                    unreadable = error
                    break
                if not block:
                    return
                stream.write(block)
                stream.flush()  # waits for what is under way, which would fill the memory
        filesystem.delete_file(path)
        raise unreadable

    with ThreadPoolExecutor(1) as thread:
        thread.submit(put).result()


@contextmanager
def local_folder(uri: Place) -> Iterator[Path]:
    """Hold a place as a local folder to write into, made if it is not there.

    For a URI that is a temporary folder, empty at first; when the block ends without an error its
    files are put there, those last written last.
    """
    path = Path(resolve(uri)[1])
    if is_local(uri):
        path.mkdir(parents=True, exist_ok=True)
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="skyray-") as kept:
        yield Path(kept)
        files = [found for found in Path(kept).rglob("*") if found.is_file()]
        for found in sorted(files, key=lambda file: file.stat().st_mtime_ns):
            copy(found, join(uri, found.relative_to(kept).as_posix()))


def remove(uri: Place) -> None:
    """Remove a file, or a folder with all that is in it; nothing, where nothing is.

    Raises
    ------
    ValueError
        If the place is a whole bucket or filesystem.
    """
    filesystem, path = resolve(uri)
    if not path.strip("/") or (not is_local(uri) and "/" not in path):
        raise ValueError(f"{os.fspath(uri)}: expected a file or folder, found all of a store")
    kind = filesystem.get_file_info(path).type
    if is_local(uri) and os.path.islink(path):
        os.unlink(path)
    elif kind == fs.FileType.File:
        filesystem.delete_file(path)
    elif kind == fs.FileType.Directory:
        filesystem.delete_dir(path)
