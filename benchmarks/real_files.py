"""Every file of a folder of real survey data, read by the card meant for it.

    python benchmarks/real_files.py [--data DIR] [--schemas DIR] [--json FILE]

DIR (default: SKYRAY_TEST_DATA) holds the folders that `SETS` names. Each record is read as ingest
reads it and brought to its card's row, cuts left out; what is refused is counted by its reason.
Files that belong to others (labels) or hold no survey data are listed with what they are, and those
that no set is meant for as such: none is passed over. Rubin's messages in wire format need its
schemas: the folder ``lsst/alert/packet/schema`` of PyPI's lsst-alert-packet.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "benchmarks")]

from braai import load_braai  # noqa: E402

from skyray.cards import Card, load_card  # noqa: E402
from skyray.data.rows import row_of  # noqa: E402
from skyray.data.sources import FileSource, Unclaimed  # noqa: E402
from skyray.readers.template_files import read_template_file  # noqa: E402
from skyray.records import InvalidRecord, attempt, to_the_end  # noqa: E402

Outcome = object | InvalidRecord
_ARMS = {
    "medium": "vacuum", "flux": "{arm}_flux", "ivar": "{arm}_ivar", "mask": "{arm}_mask",
    "wavelength": {"column": "{arm}_wave"}, "arms": ["b", "r", "z"],
    "coadd_grid": {"kind": "linear", "start": 3600.0, "step": 0.8, "size": 7781},
    "fields": {"object_id": "targetid", "redshift": "z", "spectype": "spectype"},
}  # fmt: skip
_NORMALISED = {"medium": "vacuum", "flux": "flux", "ivar": "ivar", "flux_unit": "relative",
               "wavelength": {"column": "wave"}, "fields": {"redshift": "z"}}  # fmt: skip
_STAMPS = {"bands": ["light"], "hdu": "each", "survey": "hst"}
_STACK = {"flux": "FLUX", "ivar": "IVAR", "mask": "MASK", "wavelength": "WAVE", "medium": "vacuum"}
_RELATIVE = {"medium": "vacuum", "flux_unit": "relative"}
_CUTS = {"frames": "{TILENAME}_{band}.fits", "ra": "RA_des", "dec": "DEC_des",
         "fields": {"object_id": "DES_COADD_OBJECT_ID"}, "size": {"half_width_arcsec": 10.0},
         "match": None}  # fmt: skip


@dataclass(frozen=True)
class Files:
    """Files of one set: a card, or a function of a path; or, as `note`, why they are not read.

    `options` take the place of the card's reader options of the same name; with `reader`, of all;
    `fit` that of its image_fit.
    """

    set: str
    patterns: tuple[str, ...]
    card: str = ""
    reader: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    fit: str = ""
    read: Callable[[Path], Any] | None = None
    note: str = ""

    def resolved(self, schemas: str | None) -> Card:
        card = load_card(self.card)
        kept = {} if self.reader else card.reader_options
        changed = {"reader": self.reader or card.reader, "reader_options": {**kept, **self.options}}
        changed["image_fit"] = self.fit or card.image_fit
        if schemas and card.reader == "lsst":
            changed["reader_options"]["schemas"] = schemas
        return Card.load({**card.snapshot(), **changed})


# The first that fits a path counts.
SETS = (
    Files("", ("README.md", "*/README.md", "*LICENSE"), note="about the data"),
    Files("spectra_sdss", ("spectra_sdss/spectra.parquet",), "sdss_table"),
    Files("spectra_sdss", ("spectra_sdss/raw_fits/*",), "sdss_dr16"),
    Files("spectra_desi", ("spectra_desi/raw_fits/redrock*",), "desi"),
    Files("spectra_desi", ("spectra_desi/raw_fits/*",), "desi"),
    Files("spectra_desi", ("*/coadds.npz",), "desi", "spectrum_table", _ARMS),
    Files("spectra_desi", ("*/edr_normalised.npz",), "desi", "spectrum_table", _NORMALISED),
    Files("spectra_lamost", ("spectra_lamost/*.fits",), "lamost_dr10"),
    Files("spectra_lamost", ("*/truth.csv",), note="labels, also in the headers"),
    Files("spectra_manga", ("spectra_manga/*",), "sdss_dr16", "spectrum_image", _STACK),
    Files("ztf_alerts", ("ztf_alerts/*.parquet", "ztf_alerts/raw_avro/*"), "ztf_bts"),
    Files("ztf_btsbot_example", ("*/triplets.npz",), "btsbot_triplets"),
    Files("ztf_btsbot_example", ("*/candidates.csv",), note="read with the triplets"),
    Files("galaxies_gz1", ("galaxies_gz1/*",), "galaxies_gz1"),
    Files("catalog_des_sdss", ("*/crossmatch.parquet",), "des_galaxies", options=_CUTS),
    Files("lenses_deeplense", ("lenses_deeplense/*",), "lenses_folder"),
    Files("hst_galaxy_stamps", ("hst_*/*",), "euclid_cutouts", "image_fits", _STAMPS, fit="resize"),
    Files("rubin_alerts", ("rubin_alerts/*",), "lsst_alerts"),
    Files("euclid_lenses", ("*/vis/data.fits",), "euclid_cutouts"),
    Files("euclid_lenses", ("*/nir_?/data.fits",), "euclid_cutouts"),
    Files("euclid_lenses", ("euclid_*.fits",), "euclid_cutouts"),
    Files("euclid_lenses", ("euclid_*.json",), note="positions of neighbours, for modelling"),
    Files("weights_braai", ("*.weights.h5",), read=lambda path: [load_braai(path)]),
    Files("weights_braai", ("*.architecture.json",), note="layers, built in benchmarks/braai.py"),
    Files("templates", ("templates/boss_*/*", "*/rrtemplate-*"), read=read_template_file),
    Files("templates", ("*/star_bases.npz", "*/mastar_hc.npz", "*/bc03_ssp.npz"),
          note="read by `load_templates`, all together"),
    Files("templates", ("templates/*",), "desi", "spectrum_table", _RELATIVE),
)  # fmt: skip
_NOBODY = Files("", (), note="no reader is meant for it")


@dataclass
class Line:
    """One line of the table: what came of the files of one kind."""

    set: str
    format: str
    card: str
    files: int = 0
    read: int = 0
    refused: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    example: dict[str, str] = field(default_factory=dict)
    note: str = ""

    def add(self, outcomes: Iterator[Outcome]) -> None:
        self.files += 1
        for outcome in outcomes:
            if isinstance(outcome, InvalidRecord):
                self.refused += 1
                self.reasons[outcome.reason] = self.reasons.get(outcome.reason, 0) + 1
                self.example.setdefault(outcome.reason, outcome.detail)
            else:
                self.read += 1


def meant_for(path: str) -> Files:
    fits = (files for files in SETS if any(fnmatchcase(path, p) for p in files.patterns))
    return next(fits, _NOBODY)


def outcomes(files: Files, path: Path, schemas: str | None) -> Iterator[Outcome]:
    """Yield a row, or a refusal, for everything that a file holds."""
    if files.read is not None:
        yield from to_the_end(lambda: files.read(path), str(path))
        return
    card = files.resolved(schemas)
    source = FileSource(card, [str(path)])
    for unit in source.units(source.starts()[0]):
        if isinstance(unit, Unclaimed):
            continue
        for record in to_the_end(lambda unit=unit: source.read(unit), unit.uri):
            yield (
                record
                if isinstance(record, InvalidRecord)
                else attempt(
                    lambda record=record: row_of(card, record, apply_cuts=False), record.source
                )
            )


def lines(data: Path, schemas: str | None = None) -> list[Line]:
    found: dict[tuple, Line] = {}
    for path in sorted(p for p in data.rglob("*") if p.is_file()):
        below = path.relative_to(data).as_posix()
        files = meant_for(below)
        kind = "".join(path.suffixes[-2:] if path.suffix in (".gz", ".h5") else path.suffixes[-1:])
        name = files.set or (below.partition("/")[0] if "/" in below else "")
        at = (SETS.index(files) if files in SETS else len(SETS), name, kind)
        line = found.setdefault(at, Line(name, kind, files.card or "–", note=files.note))
        if files.note:
            line.files += 1
        else:
            line.add(outcomes(files, path, schemas))
    return [found[at] for at in sorted(found)]


def show(found: list[Line]) -> None:
    table = Table(
        "set", "format", "card", "files", "read", "refused", "reasons", title="Real files"
    )
    for line in found:
        reasons = ", ".join(f"{name} {count}" for name, count in line.reasons.items())
        numbers = (str(n) for n in (line.files, line.read, line.refused))
        table.add_row(line.set, line.format, line.card, *numbers, reasons or line.note)
    console = Console(width=150)
    console.print(table)
    for line in found:
        for reason, detail in line.example.items():
            console.print(f"{line.set} {line.format}: {reason}: {detail}", highlight=False)
    total = {
        name: sum(getattr(line, name) for line in found) for name in ("files", "read", "refused")
    }
    console.print(
        f"in all: {total['files']} files, {total['read']} read, {total['refused']} refused"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("SKYRAY_TEST_DATA"))
    parser.add_argument("--schemas", help="folder of Rubin's schemas, or URL of a registry")
    parser.add_argument("--json", type=Path, help="write the lines here")
    arguments = parser.parse_args()
    if arguments.data is None or not arguments.data.is_dir():
        print("skipped: no folder of real data; give --data DIR or set SKYRAY_TEST_DATA")
        return
    found = lines(arguments.data, arguments.schemas)
    show(found)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps([asdict(line) for line in found], indent=2, ensure_ascii=False)
        arguments.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
