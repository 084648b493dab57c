"""Images of every kind that hypothesis can think of: ours agree with others pixel by pixel.

PNG is written by an encoder of the test's own, JPEG decoded by another library, TIFF, numpy and
FITS written by others from known arrays. ``SKYRAY_EXAMPLES`` sets how many (default 2,000).
"""

from __future__ import annotations

import io
import os
import warnings
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import tifffile
from astropy import units as u
from astropy.io import fits
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_scales
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from imagecodecs import jpeg8_decode
from PIL import Image, ImageOps
from tests.png_encoder import CHANNELS, DEPTHS, chunk, png

from skyray.readers.base import make_reader
from skyray.readers.memory import memory_file
from skyray.records import InvalidRecord

EXAMPLES = int(os.environ.get("SKYRAY_EXAMPLES", "2000"))
SEEN: Counter = Counter()


@dataclass
class Example:
    """A file; the planes it holds, or the reasons for which it may be refused."""

    kind: str
    content: bytes
    bands: int = 1
    planes: np.ndarray | None = None
    reasons: tuple[str, ...] = ()
    scale: float | None = None
    options: dict | None = None


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


def upright(planes: np.ndarray, orientation: int) -> np.ndarray:
    """PIL's own turning, of one plane after another."""
    turned = []
    for plane in planes.astype(np.float32):
        image = Image.fromarray(plane)
        image.getexif()[0x0112] = orientation
        turned.append(np.asarray(ImageOps.exif_transpose(image)))
    return np.stack(turned)


sizes = st.tuples(st.integers(1, 11), st.integers(1, 11))
seeds = st.integers(0, 2**32 - 1)
orientations = st.sampled_from([1, 1, 2, 3, 4, 5, 6, 7, 8])


@st.composite
def pngs(draw) -> Example:
    colour = draw(st.sampled_from(sorted(CHANNELS)))
    depth = draw(st.sampled_from(DEPTHS[colour]))
    rng = np.random.default_rng(draw(seeds))
    top = 2**depth - 1
    samples = rng.integers(0, top, (*draw(sizes), CHANNELS[colour]), endpoint=True)
    extra, alpha = b"", None
    if colour in (4, 6):
        levels = [0, top] if draw(st.booleans()) else [0, 1, top]
        alpha = samples[..., -1] = rng.choice(levels, samples.shape[:2])
        samples, colours = samples, samples[..., :-1]
    elif colour == 3:
        palette = rng.integers(0, 255, (top + 1, 3), endpoint=True)
        extra += chunk(b"PLTE", palette.astype(np.uint8).tobytes())
        colours = palette[samples[..., 0]]
        if draw(st.booleans()):
            clear = rng.choice([0, 255, 255], top + 1)
            extra += chunk(b"tRNS", clear.astype(np.uint8).tobytes())
            alpha = clear[samples[..., 0]]
        top = 255
    else:
        colours = samples
        if draw(st.booleans()):
            key = samples[0, 0]
            extra += chunk(b"tRNS", key.astype(">u2").tobytes())
            alpha = np.where((samples == key).all(axis=2), 0, top)
    if draw(st.booleans()):
        extra = chunk(b"gAMA", (45455).to_bytes(4, "big")) + extra
    orientation = draw(orientations)
    if orientation > 1:
        extra += chunk(b"eXIf", exif(orientation).tobytes().removeprefix(b"Exif\0\0"))
    content = png(
        samples, depth, colour, draw(st.lists(st.integers(0, 4), min_size=1, max_size=4)),
        draw(st.booleans()), extra,
    )  # fmt: skip
    found = Example(f"png {colour}:{depth}", content, colours.shape[2])
    if alpha is not None and not np.isin(alpha, [0, top]).all():
        found.reasons = ("image_transparent",)
        return found
    planes = np.moveaxis(colours, 2, 0).astype(np.float32)
    if depth < 8 and colour == 0:
        planes *= 255 // top
    if alpha is not None:
        planes = np.where(alpha == 0, np.nan, planes)
    found.planes = upright(planes, orientation)
    return found


@st.composite
def jpegs(draw) -> Example:
    mode = draw(st.sampled_from(["L", "RGB", "RGB", "CMYK"]))
    shape = draw(sizes) if mode == "L" else (*draw(sizes), len(mode))
    pixels = np.random.default_rng(draw(seeds)).integers(0, 256, shape, np.uint8)
    stream, orientation = io.BytesIO(), draw(orientations)
    Image.fromarray(pixels, mode).save(
        stream, "JPEG", quality=draw(st.integers(30, 100)), progressive=draw(st.booleans()),
        exif=exif(orientation), icc_profile=draw(st.sampled_from([None, b"profile"])),
    )  # fmt: skip
    found = Example(f"jpeg {mode}", stream.getvalue(), 1 if mode == "L" else 3)
    if mode == "CMYK":
        found.reasons = ("image_mode",)
    else:
        decoded = jpeg8_decode(found.content).reshape(*shape[:2], -1)
        found.planes = upright(np.moveaxis(decoded, 2, 0), orientation)
    return found


@st.composite
def tiffs(draw) -> Example:
    kind = draw(st.sampled_from(["u1", "u2", "i2", "u4", "f2", "f4", "f8"]))
    samples = draw(st.sampled_from([1, 1, 3, 2, 4]))
    rng = np.random.default_rng(draw(seeds))
    shape = (*draw(sizes), samples)
    top = np.iinfo(kind).max if kind[0] in "ui" else 1
    values = (rng.random(shape) * top).astype(kind)
    alpha = samples in (2, 4)
    if alpha:
        values[..., -1] = rng.choice([0, top], shape[:2])
    pages = draw(st.sampled_from([1, 1, 1, 1, 2]))
    planar = samples > 1 and draw(st.booleans())
    stream, orientation = io.BytesIO(), draw(orientations)
    written = values[..., 0] if samples == 1 else np.moveaxis(values, 2, 0) if planar else values
    with tifffile.TiffWriter(stream, byteorder=draw(st.sampled_from("<>"))) as tiff:
        for _ in range(pages):
            tiff.write(
                written, photometric="rgb" if samples > 2 else "minisblack",
                planarconfig=None if samples == 1 else "separate" if planar else "contig",
                compression=draw(st.sampled_from([None, "zlib", "lzw", "packbits", "zstd"])),
                extrasamples=["unassalpha"] if alpha else None, metadata=None,
                tile=draw(st.sampled_from([None, (16, 16)])),
                extratags=[(274, "H", 1, orientation, True)],
            )  # fmt: skip
    bands = samples - alpha
    found = Example(f"tiff {kind}×{samples}", stream.getvalue(), bands)
    if pages > 1:
        found.reasons = ("image_frames",)
        return found
    planes = np.moveaxis(values[..., :bands].astype(np.float32), 2, 0)
    if alpha and kind[0] == "i":
        found.reasons = ("image_transparent",)
    if alpha:
        planes = np.where(values[..., -1] == 0, np.nan, planes)
    found.planes = upright(planes, orientation)
    return found


@st.composite
def others(draw) -> Example:
    kind = draw(st.sampled_from(["GIF", "WEBP", "BMP", "PPM", "animated PNG", "16-bit half"]))
    rng = np.random.default_rng(draw(seeds))
    image = Image.fromarray(rng.integers(0, 256, (*draw(sizes), 3), np.uint8))
    stream = io.BytesIO()
    if kind == "animated PNG":
        more = Image.fromarray(255 - np.asarray(image))
        image.save(stream, "PNG", save_all=True, append_images=[more])
        return Example(kind, stream.getvalue(), 3, reasons=("image_frames",))
    if kind == "16-bit half":
        samples = rng.integers(0, 65536, (3, 4, 4))
        samples[0, 0, 3] = 30_000
        return Example(kind, png(samples, 16, 6), 3, reasons=("image_transparent",))
    image.save(stream, kind)
    return Example(kind, stream.getvalue(), 3, reasons=("image_format",))


@st.composite
def arrays(draw) -> Example:
    kind = draw(st.sampled_from(["u1", ">i2", "<f4", ">f8", "?", "u8", "c8", "S3"]))
    rng = np.random.default_rng(draw(seeds))
    bands = draw(st.sampled_from([1, 3]))
    height, width = draw(st.tuples(st.integers(4, 9), st.integers(4, 9)))
    image = (rng.random((bands, height, width)) * 100).astype(kind)
    stored = np.moveaxis(image, 0, 2) if draw(st.booleans()) else image
    stored = np.asfortranarray(stored) if draw(st.booleans()) else stored
    stored = stored[0] if bands == 1 and stored.shape[0] == 1 else stored
    objects = draw(st.booleans()) and kind not in ("c8", "S3")
    stream = io.BytesIO()
    if objects:
        pair = np.empty(2, object)
        pair[:] = [stored, draw(st.sampled_from([1.5e-23, np.float64(3e-24), 7]))]
        np.save(stream, pair, allow_pickle=True)
    else:
        np.save(stream, stored)
    found = Example(f"npy {kind}{' objects' * objects}", stream.getvalue(), bands)
    if kind in ("c8", "S3"):
        found.reasons = ("image_type",)
    else:
        found.planes = image.astype(np.float32)
    return found


@st.composite
def cubes(draw) -> Example:
    """FITS: types, scales, blanks, compression, weights before and behind, order of bands."""
    rng = np.random.default_rng(draw(seeds))
    names = "grz"[: draw(st.sampled_from([1, 3]))]
    order = draw(st.permutations(names))
    kind = draw(st.sampled_from(["u1", "i2", "i4", "f4", "f8"]))
    stored = (rng.random((len(names), *draw(sizes))) * 200).astype(kind)
    stored = stored[0] if len(names) == 1 else stored
    pack = draw(st.sampled_from([None, None, None, "GZIP_1", "RICE_1"]))
    pack = None if kind in ("f4", "f8") and pack == "RICE_1" else pack
    header = fits.Header()
    if kind in ("i2", "i4") and draw(st.booleans()):
        header["BLANK"] = int(stored.flat[0])
    if kind[0] in "ui" and draw(st.booleans()):
        header["BSCALE"], header["BZERO"] = 0.25, -3.0
    if len(names) > 1 and draw(st.booleans()):
        header["BANDS"] = "".join(order)
    else:
        order = names
    angle, scale = draw(st.floats(0, 6.28)), draw(st.floats(0.05, 2.0))
    unit = draw(st.sampled_from(["deg", "arcsec", "rad"]))
    header.update(sky(scale, angle, unit))
    raw = fits.PrimaryHDU(stored)
    raw.header.update(header)
    image = bytes(raw.header.tostring().encode()) + stored.astype(f">{kind}").tobytes()
    plain = image + bytes(-len(image) % 2880)
    with warnings.catch_warnings(), fits.open(io.BytesIO(plain)) as hdus:
        warnings.simplefilter("ignore")
        truth = np.array(hdus[0].data, np.float64)
        truth = truth[[order.index(name) for name in names]] if len(names) > 1 else truth[None]
    content = plain
    if pack or draw(st.booleans()):
        content = packed(plain, pack, draw(st.booleans()))
    found = Example(f"fits {kind} {pack or ''}", content, len(names), truth.astype(np.float32))
    found.scale, found.options = scale, {"bands": list(names)}
    return found


def sky(scale: float, angle: float, unit: str) -> dict:
    step = (scale * u.arcsec).to_value(unit)
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = {"CD1_1": -step * cos, "CD1_2": step * sin, "CD2_1": step * sin, "CD2_2": step * cos}
    return {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CUNIT1": unit, "CUNIT2": unit,
            "CRPIX1": 3.0, "CRPIX2": 3.0, "CRVAL1": 0.0, "CRVAL2": 0.0, **matrix}  # fmt: skip


def packed(plain: bytes, pack: str | None, weight_first: bool) -> bytes:
    """The image as an extension, compressed or not, with a weight map beside it."""
    with (
        warnings.catch_warnings(),
        fits.open(io.BytesIO(plain), do_not_scale_image_data=True) as hdus,
    ):
        warnings.simplefilter("ignore")
        data, header = hdus[0].data.copy(), hdus[0].header.copy()
        kept = {key: header[key] for key in ("BLANK", "BSCALE", "BZERO") if key in header}
        if pack and not kept:
            image = fits.CompImageHDU(
                data, header, compression_type=pack, name="SCI", quantize_level=0
            )
        else:
            image = fits.ImageHDU(data, header, name="SCI", do_not_scale_image_data=True)
            image.header.update(kept)
        weight = fits.ImageHDU(np.ones(data.shape[-2:], "f4"), name="WHT")
        both = [weight, image] if weight_first else [image, weight]
        stream = io.BytesIO()
        fits.HDUList([fits.PrimaryHDU(), *both]).writeto(stream)
        return stream.getvalue()


READERS = {"npy": ("image_arrays", "x.npy"), "fits": ("image_fits", "x.fits")}


def outcome(example: Example, content: bytes):
    reader, name = READERS.get(example.kind.split()[0], ("image_files", "x.png"))
    bands = ["red", "green", "blue"] if example.bands == 3 else ["light"]
    options = {"bands": bands, **(example.options or {})}
    try:
        (found,) = make_reader(reader, options).read(memory_file(content, name))
    except InvalidRecord as error:
        found = error
    return found


CUTS = st.sampled_from([None] * 20 + [0.0, 0.5, 0.97, 1.0])  # where a file ends too early


def many(examples: int):
    return settings(
        max_examples=examples, deadline=None, database=None, derandomize=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


@many(EXAMPLES)
@given(st.one_of(pngs(), pngs(), jpegs(), tiffs(), tiffs(), arrays(), arrays(), others()), CUTS)
def images(example: Example, cut: float | None):
    check_agrees(example, cut)


@many(EXAMPLES // 8)  # twenty times as slow: astropy writes them; more in the test of FITS
@given(cubes(), CUTS)
def fits_images(example: Example, cut: float | None):
    check_agrees(example, cut)


def check_agrees(example: Example, cut: float | None):
    content = example.content
    if cut is not None:
        content = content[: max(4, int(cut * (len(content) - 1)))]
    found = outcome(example, content)
    kind = example.kind.split()[0]
    SEEN["examples"] += 1
    if isinstance(found, InvalidRecord):
        SEEN[f"{kind} refused {found.reason}"] += 1
        assert found.reason != "field_invalid", found
        assert cut is not None or found.reason in example.reasons, found
        return
    SEEN[f"{kind} read"] += 1
    assert example.planes is not None, f"{example.kind}: expected {example.reasons}"
    np.testing.assert_array_equal(found.image, example.planes)
    if example.scale is not None:
        np.testing.assert_allclose(found.pixel_scale_arcsec, example.scale, rtol=1e-5)


@pytest.mark.parametrize(("check", "least"), [(images, EXAMPLES), (fits_images, EXAMPLES // 8)])
def test_images_agree_or_are_refused_by_name(capsys, check, least):
    SEEN.clear()
    check()
    read = sum(count for name, count in SEEN.items() if name.endswith(" read"))
    with capsys.disabled():
        print(f"\n{SEEN['examples']} images, {read} read, 0 disagreements;", dict(SEEN))
    assert SEEN["examples"] >= least
    assert read >= 0.5 * SEEN["examples"]


def test_scales_are_astropys():
    header = fits.Header(sky(0.3, 0.7, "rad"))
    scales = proj_plane_pixel_scales(WCS(header)) * 3600
    np.testing.assert_allclose(scales, 0.3, rtol=1e-9)
