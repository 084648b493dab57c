"""Values that a field of a survey file may hold and none of them should."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from skyray.transforms.alerts import FEATURES

JUNK = [
    {}, {"$numberDouble": "NaN"}, [], [1.0, 2.0], "None", "nan", "", "1e5", "５", "\x00", "ß" * 300,
    True, False, None, float("nan"), float("inf"), -float("inf"), 10**30, -(10**400), 2**63, 1e308,
    -1, 0, 1.5,
]  # fmt: skip
junk = st.one_of(
    st.sampled_from(JUNK),
    st.text(max_size=8),
    st.integers(),
    st.floats(),
    st.recursive(
        st.none() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=8,
    ),
)
FIELDS = [
    *FEATURES, "jd", "fid", "candid", "isdiffpos", "drb", "drbversion", "rb", "jdstarthist",
    "ssdistnr", "programid",
]  # fmt: skip


def packet(candid: int = 2695378462115010012, **changes) -> dict:
    """Return an alert packet under ZTF's names, stamps as arrays; `changes` of its candidate."""
    random = np.random.default_rng(candid % 1000)
    derived = {"new_drb", "nnotdet", "age", "peakmag_so_far", "maxmag_so_far", "days_since_peak",
               "days_to_peak"}  # fmt: skip
    candidate = {name: n + 1.0 for n, name in enumerate(FEATURES) if name not in derived}
    candidate |= {"jd": 2459000.5, "fid": 1, "ra": 150.1, "dec": 2.2, "isdiffpos": "t"}
    candidate |= {"candid": candid, "jdstarthist": 2458990.5, "drb": 0.9, "drbversion": "d6_m7"}
    history = [{"jd": 2458999.5, "fid": 2, "magpsf": 19.0, "sigmapsf": 0.1, "diffmaglim": 20.0}]
    stamps = {
        name: random.normal(10, 1, (8, 8)).astype(np.float32)
        for name in ("science", "template", "difference")
    }
    return {"objectId": "ZTF20aaaaaaa", "candid": candid, "candidate": candidate | changes,
            "prv_candidates": history, "cutouts": stamps}  # fmt: skip


def as_json(one: dict) -> dict:
    """Return a packet as its JSON: stamps as rows."""
    return {**one, "cutouts": {name: stamp.tolist() for name, stamp in one["cutouts"].items()}}
