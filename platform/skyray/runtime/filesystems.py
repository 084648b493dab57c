"""The filesystem behind a place: how its text is read, how pyarrow and Lance reach its store."""

from __future__ import annotations

import functools
import io
import os
import posixpath
import re
import time
from dataclasses import dataclass
from urllib.parse import parse_qsl

from pyarrow import ArrowInvalid, NativeFile, PythonFile, fs

Place = str | os.PathLike

_ATTEMPTS = 10  # the waits between pyarrow's double: 25 ms … 6.4 s, together 13 s
_BUFFER = 1 << 16
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_COLLAPSED = re.compile(r"(?:^|/)(?:s3|gs|gcs|hdfs|abfss?|https?|file):/[^/]")
_OPTIONS = {
    "s3": {"endpoint_override", "scheme", "region", "force_virtual_addressing", "anonymous"},
    "gs": {"endpoint_override", "scheme", "project_id", "retry_limit_seconds"},
}
_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
# What a URL holds unquoted: Lance would keep a table of any other name under a name not ours.
_URL_SIGNS = re.compile(r"[A-Za-z0-9/_.~!$&'()*+,;=:@%-]*")


def split(uri: Place) -> tuple[str, str, str]:
    """Return scheme ('' for a local path), name and options of a place.

    Raises
    ------
    ValueError
        If it holds credentials or unknown options, or is a URI that was made a `Path`.
    """
    text = os.fspath(uri)
    found = _SCHEME.match(text)
    if not found:
        if _COLLAPSED.search(text):
            raise ValueError(f"{text}: expected SCHEME://…, found one slash: a URI was made a Path")
        return "", text, ""
    scheme, rest = found[1].lower(), text[found.end() :]
    if scheme == "file":
        return "", rest, ""
    scheme = "gs" if scheme == "gcs" else scheme
    _refuse_credentials(scheme, rest)
    path, mark, tail = rest.rpartition("?")
    given = {key for key, _ in parse_qsl(tail, keep_blank_values=True)} if mark else set()
    known = _OPTIONS.get(scheme, set())
    if not given & known:
        return scheme, rest, ""
    if given - known:
        raise ValueError(
            f"{scheme}://{path}: expected options {sorted(known)}, found {sorted(given - known)}"
        )
    return scheme, path, tail


def made(scheme: str, path: str, options: str) -> str:
    """Return the place of these parts."""
    return (f"{scheme}://" if scheme else "") + path + (f"?{options}" if options else "")


def _refuse_credentials(scheme: str, rest: str) -> None:
    user, at, host = rest.partition("/")[0].rpartition("@")
    if at and (scheme == "s3" or ":" in user):
        raise ValueError(
            f"{scheme}://…@{host}: expected no user or password in a place (places are written to "
            "logs and manifests); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a "
            "role"
        )


def resolve(uri: Place) -> tuple[fs.FileSystem, str]:
    """Return the filesystem of a place and its path there.

    Raises
    ------
    ValueError
        As `split` does, or if nothing can open its scheme.
    """
    scheme, path, options = split(uri)
    if not scheme:
        return _local(), os.path.abspath(path)
    if scheme == "s3":
        return _s3(s3_settings(uri)), path.rstrip("/")
    host, _, rest = path.rstrip("/").partition("/")
    filesystem, root = _other(scheme, host, options)
    if isinstance(filesystem, fs.PyFileSystem):
        return filesystem, filesystem.handler.fs._strip_protocol(f"{scheme}://{path}")
    return filesystem, posixpath.join(root, rest) if rest else root


@functools.cache
def _local() -> fs.LocalFileSystem:
    """Return pyarrow's filesystem of this machine; to make one costs as much as to read a file."""
    return fs.LocalFileSystem()


@functools.cache
def _other(scheme: str, host: str, options: str) -> tuple[fs.FileSystem, str]:
    """Return pyarrow's filesystem for a scheme and its root, or fsspec's where pyarrow has none."""
    try:
        return fs.FileSystem.from_uri(made(scheme, host, options))
    except ArrowInvalid as error:
        try:
            import fsspec

            return fs.PyFileSystem(fs.FSSpecHandler(fsspec.filesystem(scheme))), ""
        except (ImportError, ValueError) as other:
            raise ValueError(f"{scheme}://{host}: nothing opens it: {error}; {other}") from None


# S3 ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class S3Settings:
    """How an S3 store is reached; `endpoint` is a URL, or '' for AWS itself."""

    endpoint: str
    region: str
    virtual: bool
    anonymous: bool


def s3_settings(uri: Place) -> S3Settings:
    """Return how the store of an ``s3://`` place is reached: its options, then ``AWS_…``."""
    _, path, tail = split(uri)
    options, variables = dict(parse_qsl(tail)), os.environ.get
    endpoint = options.get("endpoint_override") or ""
    if endpoint and "://" not in endpoint:
        endpoint = f"{options.get('scheme', 'https')}://{endpoint}"
    endpoint = endpoint or variables("AWS_ENDPOINT_URL_S3") or variables("AWS_ENDPOINT_URL") or ""
    region = options.get("region") or variables("AWS_REGION") or variables("AWS_DEFAULT_REGION")
    if not region:
        region = "us-east-1" if endpoint else _region_of(path.partition("/")[0])
    flags = (options.get(key) == "true" for key in ("force_virtual_addressing", "anonymous"))
    return S3Settings(endpoint.rstrip("/"), region, *flags)


_region_of = functools.cache(fs.resolve_s3_region)


class _S3(fs.S3FileSystem):
    """Retries where pyarrow's does not: small reads, and on workers, to which it takes no keys."""

    def __init__(self, settings: S3Settings):
        self._settings = settings
        scheme, _, host = settings.endpoint.rpartition("://")
        super().__init__(
            region=settings.region,
            scheme=scheme or "https",
            endpoint_override=host or None,
            force_virtual_addressing=settings.virtual,
            anonymous=settings.anonymous,
            background_writes=True,  # without them pyarrow completes an object that lacks a part
            allow_delayed_open=True,  # one call for a small object
            connect_timeout=10,
            request_timeout=60,
            retry_strategy=fs.AwsDefaultS3RetryStrategy(_ATTEMPTS),
        )

    def __reduce__(self):
        return _s3, (self._settings,)

    def open_input_file(self, path: str) -> NativeFile:
        return PythonFile(io.BufferedReader(_Again(super().open_input_file(path)), _BUFFER), "r")

    def open_input_stream(self, path: str, compression="detect", buffer_size=None) -> NativeFile:
        return self._wrap_input_stream(self.open_input_file(path), path, compression, buffer_size)


class _Again(io.RawIOBase):
    """Reads an object, and again where a store's refusal was longer than the bytes asked for.

    pyarrow then has no room for the refusal's text and gives up at once.
    """

    def __init__(self, file: NativeFile):
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        for attempt in range(_ATTEMPTS):
            try:
                return self._file.readinto(buffer)
            except OSError as error:
                if "flush response stream" not in str(error) or attempt == _ATTEMPTS - 1:
                    raise
            time.sleep(0.025 * 2**attempt)
        raise AssertionError

    def close(self) -> None:
        self._file.close()
        super().close()


@functools.cache
def _s3(settings: S3Settings) -> fs.S3FileSystem:
    return _S3(settings)


# Lance ---------------------------------------------------------------------------------------


def lance_uri(uri: Place) -> str:
    """Return a place as Lance takes it: without options, which `lance_options` hands over.

    Raises
    ------
    ValueError
        If Lance would keep the table under another name: it quotes blanks and ``ü`` in the name
        of an object, and takes ``#`` and ``?`` for an end.
    """
    scheme, path, _ = split(uri)
    if not scheme:
        return os.path.abspath(path)
    if not _URL_SIGNS.fullmatch(path):
        found = sorted({sign for sign in path if not _URL_SIGNS.fullmatch(sign)})
        raise ValueError(
            f"{os.fspath(uri)}: a table in an object store: expected a name of letters, digits and "
            f"-_./=+, found {found}"
        )
    return f"{scheme}://{path}"


def lance_options(uri: Place) -> dict[str, str]:
    """Return Lance's ``storage_options`` for a place: its store as pyarrow reaches it here.

    They hold the keys of the ``AWS_…`` variables: hand them to Lance, never to a log.
    """
    scheme, path, _ = split(uri)
    if not scheme:
        return {}
    options = {
        "client_max_retries": str(_ATTEMPTS),
        "client_retry_timeout": "180",  # s
        "download_retry_count": str(_ATTEMPTS),
    }
    if scheme != "s3":
        return options
    settings, bucket = s3_settings(uri), path.partition("/")[0]
    # As pyarrow does: the bucket is part of the host at AWS, of the path at other endpoints.
    virtual = settings.virtual or (not settings.endpoint and "." not in bucket)
    options["aws_region"] = settings.region
    options["aws_virtual_hosted_style_request"] = str(virtual).lower()
    if settings.endpoint:
        kind, _, host = settings.endpoint.partition("://")
        options["aws_endpoint"] = f"{kind}://{bucket}.{host}" if virtual else settings.endpoint
        options["allow_http"] = str(kind == "http").lower()
    if settings.anonymous:
        return options | {"aws_skip_signature": "true"}
    return options | {key.lower(): os.environ[key] for key in _KEYS if os.environ.get(key)}
