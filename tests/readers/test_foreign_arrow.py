"""No type of a stranger's becomes code: canaries through every reader, at every depth."""

from __future__ import annotations

import base64
import contextlib
import re
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import fs
from tests.hostile_arrow import (
    NAME,
    PARAMETERS,
    PICKLED,
    TRAP,
    extension_field,
    nested,
    pickled,
    registered_trap,
    write_parquet,
)

from skyray.readers import foreign_arrow
from skyray.readers.base import SurveyFile, make_reader
from skyray.readers.foreign_arrow import (
    MAX_PARQUET_PARTS,
    TENSOR,
    ParquetFile,
    open_ipc,
    read_table,
)
from skyray.records import InvalidRecord, tensor_array

ROWS = 2
SPECTRA = {"medium": "vacuum", "wavelength": {"column": "w"}, "flux": "flux", "ivar": "ivar",
           "fields": {"object_id": "odd"}}  # fmt: skip
READERS = {
    "spectrum_table": SPECTRA,
    "image_table": {"image": "image", "fields": {"object_id": "odd"}},
    "ztf": {},
    "frame_cutouts": {"frames": "{band}.fits", "ra": "ra", "dec": "dec"},
}
NESTINGS = "column", "list", "large_list", "fixed_size_list", "struct", "map", "list_of_structs"


@pytest.fixture
def marker(tmp_path) -> Path:
    return tmp_path / "marker"


@pytest.fixture
def trap():
    with registered_trap():
        yield


def columns(odd: pa.Array) -> dict[str, pa.Array]:
    """A table that every reader takes for its own, but for the column ``odd``."""
    wave = pa.array([[4000.0, 4001.0]] * ROWS)
    place = pa.array([1.0] * ROWS)
    return {"w": wave, "flux": wave, "ivar": wave, "image": pa.array([b"x"] * ROWS), "ra": place,
            "dec": place, "candid": pa.array([1] * ROWS), "odd": odd}  # fmt: skip


def read(name: str, path: Path) -> list:
    reader = make_reader(name, READERS[name])
    file = SurveyFile(fs.LocalFileSystem(), str(path))
    return [record for unit in reader.units(file) for record in reader.read(file, unit)]


def assert_refused(path: Path, marker: Path, call, column: str, kind: str) -> None:
    with pytest.raises(InvalidRecord) as refusal:
        call()
    assert refusal.value.reason == "extension_type"
    assert refusal.value.source == str(path)
    assert f"column {column}" in refusal.value.detail
    assert kind in refusal.value.detail
    assert not marker.exists()


def test_it_is_the_only_door_of_the_rooms_that_strangers_enter():
    root = Path(__file__).resolve().parents[2]
    rooms = ["platform/skyray/readers", "platform/skyray/simulate", "platform/skyray/analysis",
             "serve"]  # fmt: skip
    doors = re.compile(r"import pyarrow\.(parquet|feather|dataset|orc)|import (parquet|feather)\b|"
                       r"(ipc|feather)\.(open_|read_)|read_(parquet|feather|orc)\(")  # fmt: skip
    for path in (path for room in rooms for path in (root / room).rglob("*.py")):
        if path.name != "foreign_arrow.py":
            assert not doors.search(path.read_text(encoding="utf-8")), path


# Parquet ---------------------------------------------------------------------------------------
def test_the_canary_sings_where_nothing_is_checked(tmp_path, marker, trap):
    path = write_parquet(tmp_path / "a.parquet", columns(pickled(ROWS, marker)))
    pq.read_table(path).to_pylist()
    assert marker.exists()
    marker.unlink()
    field = extension_field("odd", marker)
    pq.write_table(pa.schema([field]).empty_table(), path)
    pq.read_schema(path)
    assert marker.exists()


@pytest.mark.parametrize("nesting", NESTINGS)
@pytest.mark.parametrize("reader", READERS)
def test_pickled_objects_are_refused_by_every_reader(tmp_path, marker, reader, nesting):
    odd = nested(pickled(ROWS, marker))[nesting]
    path = write_parquet(tmp_path / "a.parquet", columns(odd))
    assert_refused(path, marker, lambda: read(reader, path), "odd", PICKLED)


def test_a_table_of_labels_is_no_back_door(tmp_path, marker):
    odd = pickled(ROWS, marker)
    write_parquet(tmp_path / "labels.parquet", {**columns(odd), "name": pa.array("ab")})
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    reader = make_reader("image_files", {"table": "labels.parquet", "fields": {"object_id": "odd"}})
    (found,) = reader.read(SurveyFile(fs.LocalFileSystem(), str(tmp_path / "a.png")))
    assert found.reason == "extension_type"
    assert found.source == str(tmp_path / "a.png")
    assert found.detail.startswith("labels.parquet: column odd")
    assert not marker.exists()


def test_types_that_run_when_a_schema_is_read_are_never_asked(tmp_path, marker, trap):
    path = tmp_path / "a.parquet"
    for field in (
        extension_field("odd", marker),
        pa.field("odd", pa.list_(extension_field("element", marker))),
        pa.field("odd", pa.struct([pa.field("a", pa.int8()), extension_field("b", marker)])),
        pa.field("odd", pa.map_(pa.string(), extension_field("value", marker))),
    ):
        pq.write_table(pa.schema([field]).empty_table(), path)
        for call in (ParquetFile, read_table, foreign_arrow.read_schema):
            assert_refused(path, marker, lambda call=call: call(path), "odd", TRAP)


def test_types_of_arrows_own_are_refused_but_for_tensors(tmp_path, marker):
    path = tmp_path / "a.parquet"
    for kind in (pa.uuid(), pa.json_(), pa.bool8(), pa.opaque(pa.int8(), "a", "b")):
        pq.write_table(pa.schema([("odd", kind)]).empty_table(), path)
        assert_refused(path, marker, lambda: read_table(path), "odd", kind.extension_name)
    pq.write_table(pa.schema([("odd", pa.json_())]).empty_table(), path, store_schema=False)
    assert read_table(path).schema.field("odd").type == pa.string()  # Parquet's own logical type


def test_what_is_accepted_is_what_pyarrow_reads(tmp_path):
    table = pa.table(
        {
            "flux": tensor_array(np.arange(24.0).reshape(4, 3, 2), pa.float32()),
            "band": pa.array(["g", "r", "g", None]).dictionary_encode(),
            "wide": pa.array([[1], None, [2, 3], []], pa.large_list(pa.int16())),
            "pair": pa.array([[1, 2]] * 4, pa.list_(pa.int8(), 2)),
            "when": pa.array([1, 2, 3, None], pa.timestamp("us", "Europe/Paris")),
            "history": pa.array([[{"jd": 1.0, "fid": 2}]] * 4),
        },
    ).replace_schema_metadata({"skyray": "stamp"})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, row_group_size=2)
    found = read_table(path)
    assert found.equals(pq.read_table(path), check_metadata=True)
    assert found.column("flux").type == table.column("flux").type
    assert read_table(path, ["band"]).column_names == ["band"]
    with ParquetFile(path) as file:
        assert file.schema_arrow.equals(pq.read_schema(path), check_metadata=True)
        assert file.read_row_group(1, ["wide"]).num_rows == 2
    assert file._handle.closed


def test_real_files_keep_their_schemas(survey_data):
    paths = sorted(survey_data.rglob("*.parquet"))
    assert len(paths) >= 5
    for path in paths:
        assert foreign_arrow.read_schema(path).equals(pq.read_schema(path), check_metadata=True)


@pytest.mark.parametrize("parameters", [b"", b"{}", b"[" * 100_000, b'{"shape": [2, 2]}',
                                        b'{"shape": [-1, -3]}', b'{"shape": [3], "dim_names": 4}',
                                        b'{"shape": [3], "permutation": [7]}', b'{"shape": [true]}',
                                        b'{"shape": "3"}'])  # fmt: skip
def test_tensors_of_impossible_shape_are_refused(tmp_path, marker, parameters):
    metadata = {NAME: TENSOR, PARAMETERS: parameters}
    schema = pa.schema([pa.field("odd", pa.list_(pa.float32(), 3), metadata=metadata)])
    path = tmp_path / "a.parquet"
    path.write_bytes(thrift_file(PLAIN, arrow_schema(schema.serialize().to_pybytes())))
    assert_refused(path, marker, lambda: read_table(path), "odd", TENSOR)


# footers that no library writes ----------------------------------------------------------------
def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value % 128 + 128]) + varint(value // 128)


def string(text: bytes) -> bytes:
    return varint(len(text)) + text


def element(name: bytes, children: int = 0) -> bytes:
    """A SchemaElement in Thrift's compact protocol: a group, or an optional int32."""
    kind = b"\x35\x02" if children else b"\x15\x02\x25\x02"
    return kind + b"\x18" + string(name) + (b"\x15" + varint(2 * children)) * bool(children) + b"\0"


def thrift_file(elements: list[bytes], pairs: bytes = b"") -> bytes:
    """A file of no rows; `pairs` are the bytes of one KeyValue."""
    footer = b"\x15\x02\x19\xfc" + varint(len(elements)) + b"".join(elements)
    footer += b"\x16\x00\x19\x0c" + (b"\x19\x1c" + pairs) * bool(pairs) + b"\0"
    return b"PAR1" + footer + struct.pack("<I", len(footer)) + b"PAR1"


def arrow_schema(*messages: bytes) -> bytes:
    """A KeyValue of ``ARROW:schema``; further messages are values that Thrift takes instead."""
    first, *rest = (string(base64.b64encode(message)) for message in messages)
    pair = b"\x18" + string(b"ARROW:schema") + b"\x18" + first
    return pair + b"".join(b"\x08\x04" + value for value in rest) + b"\0"


PLAIN = [element(b"schema", 1), element(b"odd")]


def test_a_schema_that_is_written_twice_does_not_pass_unseen(tmp_path, marker, trap):
    """Thrift takes the last of two values; the second may hide before or behind a harmless one."""
    harmless, evil = (
        pa.schema([field]).serialize().to_pybytes()
        for field in (pa.field("odd", pa.int32()), extension_field("odd", marker, pa.int32()))
    )
    path = tmp_path / "a.parquet"
    for values in ([harmless], [evil], [harmless, evil], [evil, harmless], [harmless, evil] * 2,
                   [harmless, evil, harmless]):  # fmt: skip
        path.write_bytes(thrift_file(PLAIN, arrow_schema(*values)))
        if values[-1] is evil:
            assert_refused(path, marker, lambda: read_table(path), "odd", TRAP)
        else:
            assert read_table(path).schema.names == ["odd"]
        assert not marker.exists()


def test_deep_and_wide_schemas_are_refused_before_the_stack_is_spent(tmp_path):
    path = tmp_path / "a.parquet"
    for depth in (70, MAX_PARQUET_PARTS - 10, 100_000, 900_000):
        groups = [element(b"g", 1)] * depth
        path.write_bytes(thrift_file([element(b"schema", 1), *groups, element(b"odd")]))
        with pytest.raises(InvalidRecord, match="parquet_invalid"):
            read_table(path)


def test_files_that_are_no_parquet_are_refused(tmp_path):
    path = tmp_path / "a.parquet"
    write_parquet(path, columns(pa.array([1] * ROWS)))
    good = path.read_bytes()
    for content in (b"", b"PAR1", good[:-9], good[:-4] + b"PARE", b"PAR1" + good[-8:],
                    thrift_file(PLAIN, arrow_schema(b"no flatbuffer"))):  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(InvalidRecord, match="parquet_invalid"):
            read_table(path)
    with pytest.raises(FileNotFoundError):
        read_table(tmp_path / "absent.parquet")


# IPC -------------------------------------------------------------------------------------------
def ipc(schema: pa.Schema, batch: pa.RecordBatch | None = None, file: bool = False) -> bytes:
    sink = pa.BufferOutputStream()
    with (pa.ipc.new_file if file else pa.ipc.new_stream)(sink, schema) as writer:
        if batch is not None:
            writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("file", [False, True])
def test_types_that_run_when_a_stream_is_opened_are_never_asked(marker, trap, file):
    odd = extension_field("odd", marker)
    for kind in (
        odd.type,
        pa.list_(odd),
        pa.large_list(odd),
        pa.list_(odd, 3),
        pa.list_view(odd),
        pa.struct([odd]),
        pa.map_(pa.string(), odd),
        pa.dense_union([odd]),
        pa.sparse_union([odd, pa.field("b", pa.int8())]),
        pa.dictionary(pa.int8(), pa.struct([odd])),
        pa.list_(pa.struct([pa.field("deep", pa.list_(odd))])),
    ):
        field = odd if kind == odd.type else pa.field("odd", kind)
        body = ipc(pa.schema([pa.field("flux", pa.float32()), field]), file=file)
        assert_refused("body", marker, lambda body=body: open_ipc(body, "body"), "odd", TRAP)


def test_pickled_objects_in_a_stream_are_refused(marker):
    for values in nested(pickled(ROWS, marker)).values():
        batch = pa.record_batch({"odd": values})
        body = ipc(batch.schema, batch)
        assert_refused("body", marker, lambda body=body: open_ipc(body, "body"), "odd", PICKLED)


def test_a_second_schema_in_a_stream_is_not_read(marker, trap):
    harmless = ipc(pa.schema([pa.field("odd", pa.large_binary())]))
    evil = ipc(pa.schema([extension_field("odd", marker)]))
    with pytest.raises((InvalidRecord, pa.ArrowInvalid, OSError)):
        open_ipc(harmless[:-8] + evil, "body").read_all()
    assert not marker.exists()


@pytest.mark.parametrize("file", [False, True])
def test_tensors_and_dictionaries_of_a_stream_are_read(file):
    flux = np.arange(24.0).reshape(4, 3, 2)
    band = pa.array(["g", "r", "g", None]).dictionary_encode()
    batch = pa.record_batch({"flux": tensor_array(flux, pa.float32()), "band": band})
    found = open_ipc(ipc(batch.schema, batch, file), "body").read_all()
    assert found["band"].to_pylist() == ["g", "r", "g", None]
    np.testing.assert_array_equal(found["flux"].to_pylist(), flux.reshape(4, 6))
    plain = pa.record_batch({"band": band})
    assert open_ipc(ipc(plain.schema, plain, file), "body").read_all().to_batches() == [plain]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_files_are_read_or_refused(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "damaged"
    folder.mkdir(exist_ok=True)
    marker, path = folder / "marker", folder / "a.parquet"
    odd = data.draw(st.sampled_from([pickled(ROWS, marker), pa.array([1] * ROWS)]))
    content = bytearray(write_parquet(path, columns(odd)).read_bytes())
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(footer, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content))
    with contextlib.suppress(InvalidRecord):
        foreign_arrow.read_schema(path)
    assert not marker.exists()
