"""A record with a bad field is one row of the quarantine; the rows beside it are in the dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.bad_values import FIELDS, junk, packet

from skyray.cards import load_card
from skyray.data.outcomes import Job, outcomes_schema, outcomes_table, unit_outcomes
from skyray.data.sources import Unit
from skyray.records import Alert, InvalidRecord, attempt

CARD = load_card("ztf_real_bogus").override(["cuts=[]"])


class Alerts:
    """Alert records made of packets without any check of a reader's."""

    def __init__(self, packets: Sequence[dict]):
        self.packets = packets

    def read(self, unit: Unit) -> Iterator[Alert | InvalidRecord]:
        for number, one in enumerate(self.packets):
            yield attempt(lambda one=one, number=number: self.alert(one, number), "x", str(number))

    @staticmethod
    def alert(one: dict, number: int) -> Alert:
        candidate = one["candidate"]
        return Alert(
            object_id=str(number), source_id=one["objectId"], candid=candidate["candid"],
            jd=candidate["jd"], fid=candidate["fid"], candidate=candidate,
            history=one["prv_candidates"], ra=candidate["ra"], dec=candidate["dec"],
            source=f"x#{number}", **one["cutouts"],
        )  # fmt: skip


def outcomes(packets: Sequence[dict]):
    job = Job(CARD, Alerts(packets), "nowhere", True)
    rows = unit_outcomes(job, Unit("x", 0, "", 1))
    return outcomes_table(rows, outcomes_schema(CARD))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(FIELDS), junk, st.booleans())
@example("jd", "2459000.5 d", True)
@example("candid", 10**30, False)
@example("fid", float("inf"), False)
@example("magpsf", {"a": [1]}, True)
def test_no_value_of_a_field_ends_an_ingest(field, value, in_history):
    bad = packet(17)
    (bad["prv_candidates"][0] if in_history else bad["candidate"])[field] = value
    table = outcomes([packet(16), bad, packet(18)])
    assert table.num_rows == 3
    assert table["ingest_row"].to_pylist() == [0, 1, 2]
    assert table["ingest_rows"].to_pylist() == [3, 3, 3]
    reasons = table["reason"].to_pylist()
    assert (reasons[0], reasons[2]) == (None, None)
    if reasons[1] is not None:
        assert table["object_id"][1].as_py() == "1"
        assert table["detail"][1].as_py()


def test_values_that_columns_cannot_hold_are_refused_and_the_others_kept():
    late, huge, half = packet(1), packet(2), packet(3)
    late["prv_candidates"][0]["jd"] = "yesterday"
    huge["candidate"]["candid"] = 10**30
    half["objectId"] = "ZTF\ud800"
    table = outcomes([packet(0), late, huge, half, packet(4)])
    found = Counter(table["reason"].to_pylist())
    assert found == {None: 2, "packet_field_invalid": 1, "field_invalid": 1, "reader_fault": 1}
    assert "expected int64, found 1000000" in table["detail"][2].as_py()
    assert "\\ud800" in table["detail"][3].as_py() or "surrogates" in table["detail"][3].as_py()
