"""Places: the same on a local folder, on an S3 store, and on one that fails one call in six."""

from __future__ import annotations

import io
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.object_store import FAULTS, LATE_FAULTS, REGION, object_store

from skyray.runtime import filesystems, places

ODD_NAMES = [
    "plain.fits", "a b.fits", "a#1.fits", "a%20b.fits", "100%", "ü/ñ 星.fits", "a+b=c&d.fits",
    "what?", "a?b=c", "it's (1) [2].fits", "deep/er/file", "packed.fits.gz", "packed.bz2",
]  # fmt: skip
BIG = bytes(range(256)) * 50_000  # 12.8 MB: two parts of an upload


@pytest.fixture(scope="module", params=["local", "s3", "flaky"])
def store(request, tmp_path_factory):
    """A place to write under; the flaky one must have failed by the end."""
    if request.param == "local":
        yield str(tmp_path_factory.mktemp("places"))
    elif request.param == "s3":
        with object_store() as found:
            yield found.uri
    else:
        with object_store(6, (*FAULTS, *LATE_FAULTS), seed=1) as found:
            yield found.uri
            assert set(found.proxy.made) == {*FAULTS, *LATE_FAULTS}


@pytest.fixture
def place(store, request) -> str:
    """A folder of its own for every test."""
    return places.join(store, request.node.originalname)


def under(place: str) -> set[str]:
    """Return names, relative to a place, of all files that it holds."""
    root = places.resolve(place)[1]
    return {path.removeprefix(f"{root}/") for path, _ in places.list_files(place)}


# names ---------------------------------------------------------------------------------------

OPTIONS = "endpoint_override=localhost:9000&scheme=http"


@pytest.mark.parametrize(
    ("uri", "parts", "joined"),
    [
        ("/data/x", ["y", "z.fits"], "/data/x/y/z.fits"),
        ("x", ["/y"], "/y"),
        ("s3://b/x", ["y"], "s3://b/x/y"),
        ("s3://b", ["a b#1%20"], "s3://b/a b#1%20"),
        ("s3://b/x/", ["y"], "s3://b/x/y"),
        (f"s3://b/x?{OPTIONS}", ["y", "z"], f"s3://b/x/y/z?{OPTIONS}"),
        (f"s3://b?{OPTIONS}", ["what?"], f"s3://b/what??{OPTIONS}"),
        ("gs://b/x?project_id=sky", ["y"], "gs://b/x/y?project_id=sky"),
    ],
)
def test_names_are_joined_before_the_options(uri, parts, joined):
    assert places.join(uri, *parts) == joined
    if not parts[0].startswith("/"):
        assert places.name(joined) == parts[-1]
        assert places.parent(joined) == places.join(uri, *parts[:-1]).removesuffix("/")
        assert places.absolute(joined) == joined


def test_the_upper_end_holds_itself():
    assert places.parent("s3://bucket") == "s3://bucket"
    assert places.parent(f"s3://bucket?{OPTIONS}") == f"s3://bucket?{OPTIONS}"
    assert places.parent("/") == "/"
    assert places.parent("file") == "."


def test_local_and_not():
    assert places.is_local("x")
    assert places.is_local(Path("/data"))
    assert places.is_local("file:///data")
    assert places.join("file:///data", "x") == "/data/x"
    assert not places.is_local("gs://b/x")


@pytest.mark.parametrize("path", [Path("s3://bucket/x"), Path("s3://bucket/x").absolute()])
def test_a_uri_that_went_through_path_is_refused(path):
    with pytest.raises(ValueError, match="a URI was made a Path"):
        places.write_bytes(path, b"")


def test_a_name_that_would_leave_a_uri_is_refused():
    with pytest.raises(ValueError, match=r"expected names to join, found \['/y'\]"):
        places.join("s3://b/x", "/y")


def test_an_unknown_option_is_refused():
    with pytest.raises(ValueError, match=r"expected options .*, found \['endpoint'\]"):
        places.resolve("s3://b/x?scheme=http&endpoint=localhost")


def test_a_scheme_that_nothing_opens_is_named():
    with pytest.raises(ValueError, match="nope://x: nothing opens it"):
        places.resolve("nope://x/y")


def test_other_schemes():
    filesystem, path = places.resolve(f"gs://bucket/a b#1%20/ü?{OPTIONS}")
    assert (filesystem.type_name, path) == ("gcs", "bucket/a b#1%20/ü")
    places.write_json("memory://folder/a", [1])  # fsspec's, which pyarrow has not
    assert places.read_json("memory://folder/a") == [1]
    assert [found.uri for found in places.walk("memory://folder")] == ["memory://folder/a"]


# files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("odd", ODD_NAMES)
def test_a_name_is_what_it_says(place, odd):
    uri = places.join(place, odd)
    assert not places.exists(uri)
    places.write_bytes(uri, odd.encode())
    assert places.read_bytes(uri) == odd.encode()
    assert places.exists(uri)
    assert odd in under(place)
    assert [places.resolve(found.uri) for found in places.walk(uri)] == [places.resolve(uri)]
    with places.local_copy(uri) as path:
        assert (path.name, path.read_bytes()) == (places.name(uri), odd.encode())
    places.remove(uri)
    assert not places.exists(uri)


def test_json(place):
    places.write_json(places.join(place, "a.json"), {"b": 1, "a": "ü"})
    assert places.read_json(places.join(place, "a.json")) == {"a": "ü", "b": 1}


def test_what_is_not_there(place):
    for read in (places.read_bytes, places.list_files, lambda uri: list(places.walk(uri))):
        with pytest.raises(FileNotFoundError):
            read(places.join(place, "nothing"))
    with pytest.raises(FileNotFoundError), places.local_copy(places.join(place, "nothing")):
        pass
    places.remove(places.join(place, "nothing"))


def test_a_stream_appears_when_it_is_whole(place):
    uri = places.join(place, "file")
    places.write_bytes(uri, b"old")
    with places.write_stream(uri) as stream:
        stream.write(BIG)
        assert places.read_bytes(uri) == b"old"
    assert places.read_bytes(uri) == BIG
    with pytest.raises(KeyboardInterrupt):
        _stopped_half_way(uri)
    assert places.read_bytes(uri) == BIG
    assert under(place) == {"file"}


def _stopped_half_way(uri: str) -> None:
    with places.write_stream(uri) as stream:
        stream.write(b"half")
        raise KeyboardInterrupt


def test_a_stream_is_read_in_pieces(place):
    uri = places.join(place, "file")
    places.write_bytes(uri, BIG)
    with places.read_stream(uri) as stream:
        stream.seek(10_000_000)
        assert stream.read(256) == BIG[10_000_000:10_000_256]


def test_copies_are_the_same(place, tmp_path):
    (tmp_path / "here").write_bytes(BIG)
    there = places.join(place, "there")
    places.copy(tmp_path / "here", there)
    places.copy(there, places.join(place, "again"))
    places.copy(places.join(place, "again"), tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == BIG
    assert under(place) == {"there", "again"}


def test_a_copy_of_what_cannot_be_read_leaves_nothing(place, tmp_path):
    with pytest.raises(FileNotFoundError):
        places.copy(tmp_path / "nothing", places.join(place, "copy"))
    assert not places.exists(places.join(place, "copy"))


class _FailingDisk(io.RawIOBase):
    """A file of which the first two blocks can be read."""

    blocks = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        self.blocks += 1
        if self.blocks > 2:
            raise OSError("input/output error")
        return len(buffer)


def test_an_upload_from_a_failing_disk_leaves_nothing():
    with object_store() as found:
        with pytest.raises(OSError, match="input/output error"):
            places._upload(f"{found.uri}/file", _FailingDisk())
        assert not places.exists(f"{found.uri}/file")


def test_a_killed_writer_leaves_no_file(place):
    uri = places.join(place, "file")
    code = (
        "import sys, time\n"
        "from skyray.runtime import places\n"
        "with places.write_stream(sys.argv[1]) as stream:\n"
        "    stream.write(b'x' * 20_000_000)\n"
        "    print('written', flush=True)\n"
        "    time.sleep(60)\n"
    )
    environment = os.environ | {"PYTHONPATH": "platform"}
    with subprocess.Popen(
        [sys.executable, "-c", code, uri], stdout=subprocess.PIPE, env=environment
    ) as child:
        assert child.stdout.readline() == b"written\n"
        child.send_signal(signal.SIGKILL)
    assert not places.exists(uri)


# folders -------------------------------------------------------------------------------------


def test_walk_finds_every_file_once(place):
    wanted = {f"{a}/{b}/{c}": a + b + c for a in range(3) for b in range(4) for c in range(2)}
    for path, size in wanted.items():
        places.write_bytes(places.join(place, path), b"x" * size)
    found = list(places.walk(place))
    root = places.resolve(place)[1]
    sizes = {places.resolve(one.uri)[1].removeprefix(f"{root}/"): one.size for one in found}
    assert sizes == wanted
    assert len(found) == len(wanted)
    assert all(one.modified_ns > 1_600_000_000 * 10**9 for one in found)
    listed = {path: size for path, size in places.list_files(place)}
    assert listed == {f"{root}/{path}": size for path, size in wanted.items()}


def test_walk_goes_round_no_circle_and_shows_a_broken_link(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_bytes(b"xy")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    found = {(Path(one.uri).relative_to(tmp_path).as_posix(), one.size)
             for one in places.walk(tmp_path)}  # fmt: skip
    assert found == {("a/file", 2), ("b/file", 2), ("gone", 0)}


def test_walk_lists_a_store_folder_by_folder():
    with object_store(math.inf) as found:
        for number in range(40):
            places.write_bytes(f"{found.uri}/tree/{number}/file", b"x")
        found.proxy.calls.clear()
        walking = places.walk(f"{found.uri}/tree")
        next(walking)
        assert found.proxy.calls["GET"] < 15
        assert 1 + len(list(walking)) == 40
        assert found.proxy.calls["GET"] >= 41


def test_a_local_folder_is_put_in_place_at_its_end(place):
    with places.local_folder(place) as folder:
        (folder / "figures").mkdir(exist_ok=True)
        (folder / "figures" / "a b#1.png").write_bytes(BIG)
        (folder / "index.html").write_text("page")
        assert places.is_local(place) == places.exists(place)
    assert under(place) == {"figures/a b#1.png", "index.html"}
    assert places.read_bytes(places.join(place, "figures", "a b#1.png")) == BIG
    with places.local_copy(place) as folder:
        assert folder.name == places.name(place)
        assert (folder / "index.html").read_text() == "page"
        assert (folder / "figures" / "a b#1.png").read_bytes() == BIG


def test_a_local_folder_of_a_failed_block_is_not_put_anywhere(place):
    if places.is_local(place):
        pytest.skip("a local place is written to as it is")
    with pytest.raises(RuntimeError):
        _fill(place, {"index.html": 1}, fails=True)
    assert not places.exists(place)


def _fill(place: str, times: dict[str, int], fails: bool = False) -> None:
    """Write empty files with these times through a local folder."""
    with places.local_folder(place) as folder:
        for name, time in times.items():
            (folder / name).touch()
            os.utime(folder / name, (time, time))
        if fails:
            raise RuntimeError


def test_what_was_written_last_is_put_there_last(monkeypatch):
    monkeypatch.setattr(filesystems, "_ATTEMPTS", 2)
    with object_store(math.inf) as found:
        found.proxy.never = "a-second"
        with pytest.raises(OSError, match="a-second"):
            _fill(f"{found.uri}/x", {"b-third": 3, "a-second": 2, "c-first": 1})
        found.proxy.never = ""
        assert under(f"{found.uri}/x") == {"c-first"}


def test_remove_takes_a_folder_and_nothing_else(place):
    for path in ("a/b/file", "a/file", "ab/file"):
        places.write_bytes(places.join(place, path), b"x")
    places.remove(places.join(place, "a"))
    assert under(place) == {"ab/file"}
    assert not places.exists(places.join(place, "a"))


def test_remove_takes_a_link_and_not_what_it_leads_to(tmp_path):
    places.write_bytes(tmp_path / "kept" / "file", b"x")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    places.remove(tmp_path / "link")
    assert under(str(tmp_path)) == {"kept/file"}


@pytest.mark.parametrize("uri", ["/", "s3://bucket", "s3://bucket/", f"s3://bucket?{OPTIONS}"])
def test_a_whole_store_is_never_removed(uri, monkeypatch):
    monkeypatch.setenv("AWS_REGION", REGION)
    with pytest.raises(ValueError, match="found all of a store"):
        places.remove(uri)
