"""Object arrays without pickle: what numpy writes is read, what could run is never looked up."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from skyray.readers.numpy_bytes import load_npy, load_npz
from skyray.records import InvalidRecord

IMAGE = np.random.default_rng(5).normal(size=(12, 9))


def objects(*values) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def npy(array: np.ndarray, protocol: int | None = None, old: bool = False) -> bytes:
    """An object array as numpy stores it, also as numpy 1 and older pickles did."""
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    content = stream.getvalue()
    if protocol is not None:
        start = content.index(b"\n") + 1
        pickled = pickle.dumps(array, protocol)
        content = content[:start] + pickled
    return content.replace(b"numpy._core", b"numpy.core") if old else content


@pytest.mark.parametrize("protocol", [None, 2, 3, 4])
@pytest.mark.parametrize(
    "image",
    [IMAGE, IMAGE.astype(">f4"), np.asfortranarray(IMAGE), IMAGE[None], (IMAGE > 0), IMAGE.T[::2]],
)
@pytest.mark.parametrize("mass", [1.5e-23, np.float64(3e-24), np.float32(0.5), 7, None])
def test_image_and_mass_as_numpy_pickles_them(protocol, image, mass):
    # Protocol 2 and numpy 1 by GLOBAL, later ones by STACK_GLOBAL with lengths before the names.
    found, beside = load_npy(
        npy(objects(image, mass), protocol, old=protocol in (2, 3)), items=("image", "axion_mass")
    )
    np.testing.assert_array_equal(found, image)
    assert found.dtype == image.dtype
    assert beside == {"axion_mass": mass}


def test_numbers_alone_are_the_image():
    found, beside = load_npy(npy(IMAGE.astype(object)))
    np.testing.assert_array_equal(found, IMAGE)
    assert beside == {}


def test_names_of_elements_must_fit():
    content = npy(objects(IMAGE, 1.0, 2.0))
    assert load_npy(content)[1] == {"item_1": 1.0, "item_2": 2.0}
    for array, items in ((content, ("image", "mass")), (npy(objects(1.0, IMAGE)), ("image", "m"))):
        with pytest.raises(InvalidRecord, match="npy_object"):
            load_npy(array, items=items)


class Canary:
    """Runs a command where it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def pickled(body: bytes) -> bytes:
    """An object array whose pickle is this."""
    head = npy(objects(1.0))
    return head[: head.index(b"\n") + 1] + body


def hostile(mark: Path) -> list[bytes]:
    command = f"touch {mark}".encode()
    text = b"\x8c" + bytes([len(command)]) + command
    return [
        npy(objects(IMAGE, Canary(mark))),
        npy(objects(IMAGE, Canary(mark)), 2),
        npy(objects(IMAGE, print)),
        npy(objects(IMAGE, {"a": 1})),
        npy(objects(IMAGE, objects(1.0, 2.0))),
        pickled(b"\x80\x04cos\nsystem\n" + text + b"\x85R."),
        pickled(b"(S'touch " + bytes(mark) + b"'\nios\nsystem\n."),  # INST
        pickled(b"(cos\nsystem\n" + text + b"o."),  # OBJ
        pickled(b"\x80\x02cos\nsystem\n" + text + b"\x85\x81."),  # NEWOBJ
        pickled(b"\x82\x01."),
        pickled(b"P1\n."),
        pickled(b"\x80\x05\x97."),  # EXT, PERSID, BUFFER
        pickled(b"cnumpy\nndarray\n}\x8c\x08__call__cos\nsystem\nsb."),  # BUILD on a global
        pickled(b"cnumpy\nndarray\n\x85\x8a\x05\0\0\0\0\1\x85R."),  # a call of another shape
    ]


def test_nothing_in_a_file_runs(tmp_path):
    mark = tmp_path / "canary"
    assert os.system(f"touch {mark}") == 0  # it would be seen
    mark.unlink()
    for number, content in enumerate(hostile(mark)):
        with pytest.raises(InvalidRecord, match=r"npy_object|npy_invalid"):
            load_npy(content)
        assert not mark.exists(), number


def test_sizes_are_checked_before_memory_is_taken():
    huge = pickle.dumps(np.zeros((3, 3)), 2).replace(
        b"K\x03K\x03\x86", b"J\xff\xff\xff\x7fK\x03\x86"
    )
    assert b"\xff\xff\xff\x7f" in huge
    with pytest.raises(InvalidRecord, match=r"image_too_large|npy_invalid"):
        load_npy(pickled(huge), max_pixels=1000)
    with pytest.raises(InvalidRecord, match="image_too_large"):
        load_npy(npy(objects(np.zeros((50, 50)), 1.0)), max_pixels=1000)
    with pytest.raises(InvalidRecord, match="npy_invalid"):  # a memo number of four bytes
        load_npy(pickled(b"K\x01r\xff\xff\xff\xffj\x01\0\0\0."))


def test_damaged_pickles_are_refused():
    whole = npy(objects(IMAGE, 2.5), 2)
    start = whole.index(b"\n") + 1
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(3000):
        content = bytearray(whole)
        for _ in range(rng.integers(1, 4)):
            content[rng.integers(start, min(start + 220, len(content)))] = rng.integers(256)
        content = (
            content[: rng.integers(start, len(content) + 1)] if rng.random() < 0.2 else content
        )
        try:
            load_npy(bytes(content), max_pixels=1000)
        except InvalidRecord as error:
            assert error.reason in ("npy_object", "npy_invalid", "image_too_large")  # noqa: PT017
            refused += 1
    assert refused > 1000


def test_archives_hold_object_arrays_too():
    stream = io.BytesIO()
    np.savez(stream, a=objects(IMAGE, 1.0), b=IMAGE, c=objects(IMAGE, IMAGE), allow_pickle=True)
    found = load_npz(stream.getvalue(), items=("image", "mass"))
    np.testing.assert_array_equal(found["a"][0], IMAGE)
    assert found["a"][1] == {"mass": 1.0}
    assert found["b"][1] == {}
    assert found["c"].reason == "npy_object"
