"""Where things lie: local paths, NFS, ``s3://`` and ``gs://`` behind one small interface.

Nothing is half-written: `write_bytes` writes aside and renames; on object stores a put is atomic.
"""

from __future__ import annotations

import json
import os
import posixpath
import uuid
from pathlib import Path
from typing import Any

from pyarrow import fs


def home() -> str:
    """Return ``SKYRAY_HOME`` (folder, NFS path or URI) or ``.skyray`` in the working folder."""
    return os.environ.get("SKYRAY_HOME") or str(Path.cwd() / ".skyray")


def resolve(uri: str | os.PathLike) -> tuple[fs.FileSystem, str]:
    """Return the filesystem and path of a local path or URI."""
    text = os.fspath(uri)
    if "://" in text:
        return fs.FileSystem.from_uri(text)
    return fs.LocalFileSystem(), str(Path(text).absolute())


def absolute(uri: str | os.PathLike) -> str:
    """Return a place as workers find it, whose working folder is another."""
    text = os.fspath(uri)
    return text if "://" in text else os.path.abspath(text)


def join(uri: str | os.PathLike, *parts: str) -> str:
    """Join path parts under a local path or URI."""
    return posixpath.join(os.fspath(uri), *parts)


def exists(uri: str | os.PathLike) -> bool:
    filesystem, path = resolve(uri)
    return filesystem.get_file_info(path).type != fs.FileType.NotFound


def read_bytes(uri: str | os.PathLike) -> bytes:
    filesystem, path = resolve(uri)
    with filesystem.open_input_file(path) as stream:
        return stream.read()


def read_json(uri: str | os.PathLike) -> Any:
    return json.loads(read_bytes(uri))


def write_bytes(uri: str | os.PathLike, content: bytes) -> None:
    """Write a whole file or nothing."""
    filesystem, path = resolve(uri)
    filesystem.create_dir(posixpath.dirname(path), recursive=True)
    if not isinstance(filesystem, fs.LocalFileSystem):
        with filesystem.open_output_stream(path) as stream:
            stream.write(content)
        return
    aside = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        with open(aside, "wb") as stream:
            stream.write(content)
        os.replace(aside, path)
    finally:
        Path(aside).unlink(missing_ok=True)


def write_json(uri: str | os.PathLike, value: Any) -> None:
    """Write a value as JSON, keys sorted, whole or not at all."""
    write_bytes(uri, json.dumps(value, indent=2, sort_keys=True).encode())


def list_files(uri: str | os.PathLike) -> list[tuple[str, int]]:
    """Return (path, size) of a file, or of all files under a folder, sorted by path.

    Raises
    ------
    FileNotFoundError
        If nothing is there.
    """
    filesystem, path = resolve(uri)
    info = filesystem.get_file_info(path)
    if info.type == fs.FileType.NotFound:
        raise FileNotFoundError(f"{os.fspath(uri)}: no such file or folder")
    if info.type == fs.FileType.File:
        return [(path, info.size)]
    found = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
    return sorted((f.path, f.size) for f in found if f.type == fs.FileType.File)


def lance_options(uri: str | os.PathLike) -> dict[str, str]:
    """Return what Lance needs to know to reach a place as `resolve` does."""
    return {}
