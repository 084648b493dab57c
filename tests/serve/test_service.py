"""The spectrum service over real HTTP on real Ray Serve."""

from __future__ import annotations

import collections
import http.client
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.serve.conftest import make_spectrum

ARROW = "application/vnd.apache.arrow.stream"
TIMEOUT = 30


def post(service: str, body=None, kind: str = "application/json", **kwargs) -> requests.Response:
    content = json.dumps(body) if kind == "application/json" else body
    headers = {"Content-Type": kind, **kwargs.pop("headers", {})}
    return requests.post(
        f"{service}/predict", data=content, headers=headers, timeout=TIMEOUT, **kwargs
    )


def arrow(spectra: list[dict]) -> bytes:
    columns = {k: [s[k] for s in spectra] for k in ("object_id", "wavelength", "flux", "ivar")}
    table = pa.table(columns).replace_schema_metadata({"medium": "vacuum"})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


@pytest.fixture(scope="module")
def expected(bundle) -> pa.Table:
    """What the predictor itself says of five spectra."""
    from serve.decode_json import decode_json

    from skyray.bundles.bundle import Predictor

    spectra = decode_json(json.dumps({"spectra": [make_spectrum(i) for i in range(5)]}).encode(), 5)
    return Predictor.from_bundle(bundle, "cpu").predict_records(spectra)


def test_json_answer_is_complete(service):
    response = post(service, make_spectrum(1))
    assert response.status_code == 200, response.text
    answer = response.json()
    (prediction,) = answer["predictions"]
    assert (answer["model_version"], answer["refused"]) == ("test-1", 0)
    assert prediction["object_id"] == "mock-1"
    assert set(prediction["probabilities"]) == {"STAR", "GALAXY", "QSO"}
    assert sum(prediction["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert prediction["label"] == max(prediction["probabilities"].items(), key=lambda p: p[1])[0]
    assert isinstance(prediction["in_domain"], bool)
    assert {"redshift", "redshift_err", "model_version"} <= set(prediction)
    assert "spectrum" not in prediction


def test_http_gives_the_predictors_numbers(service, expected):
    spectra = [make_spectrum(i) for i in range(5)]
    in_json = post(service, {"spectra": spectra}).json()["predictions"]
    in_arrow = pa.ipc.open_stream(
        post(service, arrow(spectra), ARROW, headers={"Accept": ARROW}).content
    ).read_all()
    for name in ("p_STAR", "p_GALAXY", "p_QSO", "redshift", "redshift_err"):
        truth = expected[name].to_numpy()
        key = name.removeprefix("p_")
        found = [p["probabilities"][key] if name.startswith("p_") else p[key] for p in in_json]
        found = np.array([np.nan if v is None else v for v in found])
        np.testing.assert_allclose(found, truth, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(in_arrow[name].to_numpy(), truth, rtol=1e-6, atol=1e-6)
    assert [p["label"] for p in in_json] == expected["label"].to_pylist()
    assert in_arrow["error_reason"].null_count == 5


def test_one_bad_spectrum_is_refused_on_its_own(service):
    bad = {**make_spectrum(9), "ivar": [0.0] * 3800}
    spectra = [make_spectrum(0), bad, make_spectrum(2)]
    response = post(service, {"spectra": spectra})
    first, refused, last = response.json()["predictions"]
    assert response.status_code == 200
    assert response.json()["refused"] == 1
    assert (first["object_id"], last["object_id"]) == ("mock-0", "mock-2")
    assert refused == {
        "object_id": "mock-9",
        "error": {
            "reason": "ivar_empty", "detail": "expected some pixels with ivar > 0, found none"
        },
    }  # fmt: skip
    body = post(service, arrow(spectra), ARROW, headers={"Accept": ARROW}).content
    table = pa.ipc.open_stream(body).read_all()
    assert table["object_id"].to_pylist() == ["mock-0", "mock-9", "mock-2"]
    assert table["error_reason"].to_pylist() == [None, "ivar_empty", None]
    assert table["label"].null_count == 1


def test_large_request_is_split_into_batches_and_keeps_its_order(service):
    names = [f"mock-{i}" for i in range(20)]
    answers = post(service, arrow([make_spectrum(i) for i in range(20)]), ARROW).json()
    assert [p["object_id"] for p in answers["predictions"]] == names


def test_fits_upload(service, survey_data):
    path = next(iter(sorted((survey_data / "spectra_sdss" / "raw_fits").glob("spec-*.fits"))))
    response = post(service, path.read_bytes(), "application/fits", params={"spectrum": True})
    (prediction,) = response.json()["predictions"]
    assert response.status_code == 200
    assert prediction["object_id"] == path.stem.removeprefix("spec-")
    assert len(prediction["spectrum"]["wavelength"]) == len(prediction["spectrum"]["flux"]) > 3000


@pytest.mark.parametrize(
    ("body", "kind", "status", "reason"),
    [
        (b"", "application/json", 400, "body_empty"),
        (b"{", "application/json", 400, "not_json"),
        (b"{}", "application/json", 400, "json_invalid"),
        (b"hello", "application/fits", 400, "not_fits"),
        (b"hello", ARROW, 400, "arrow_invalid"),
        (b"x", "text/csv", 415, "content_type_unknown"),
        (arrow([make_spectrum(0, 200)] * 41), ARROW, 413, "too_many_records"),
        (b"x" * (2**21 + 1), "application/fits", 413, "body_too_large"),
        (json.dumps({**make_spectrum(), "flux": [0.0] * 3800}).encode(), "application/json", 422,
         "flux_all_zero"),
        (json.dumps({"spectra": [{**make_spectrum(), "ivar": [0.0] * 3800}] * 2}).encode(),
         "application/json", 422, "ivar_empty"),
    ],
)  # fmt: skip
def test_bad_input_is_4xx_with_its_reason(service, body, kind, status, reason):
    response = requests.post(
        f"{service}/predict", data=body, headers={"Content-Type": kind}, timeout=TIMEOUT
    )
    assert (response.status_code, response.json()["error"]["reason"]) == (status, reason)
    assert response.json()["error"]["detail"]


def test_wrong_query_path_and_method(service):
    assert post(service, make_spectrum(), params={"spectrum": "maybe"}).status_code == 400
    wrong_path = requests.get(f"{service}/nothing", timeout=TIMEOUT)
    assert (wrong_path.status_code, wrong_path.json()["error"]["reason"]) == (404, "not_found")
    assert requests.get(f"{service}/predict", timeout=TIMEOUT).status_code == 405


def test_body_without_length_is_cut_off_while_it_is_read(service):
    sent = 0

    def endless():
        nonlocal sent
        for _ in range(400):
            sent += 1
            yield b"x" * 2**18

    try:
        response = requests.post(
            f"{service}/predict", data=endless(), timeout=TIMEOUT,
            headers={"Content-Type": "application/fits"},
        )  # fmt: skip
        assert response.status_code == 413
    except requests.ConnectionError:  # the answer may cross with what is still being sent
        pass
    assert sent < 400, "100 MB were taken although 2 MiB are the limit"


def test_slow_body_times_out(service):
    address = urlsplit(service)
    with socket.create_connection((address.hostname, address.port), timeout=10) as line:
        line.sendall(
            b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b'Content-Length: 1000\r\n\r\n{"a"'
        )
        started = time.monotonic()
        answer = line.recv(4000)
    assert answer.startswith(b"HTTP/1.1 408")
    assert 2 < time.monotonic() - started < 9


def test_client_that_leaves_does_no_harm(service):
    address = urlsplit(service)
    for _ in range(8):  # more than may be in flight
        line = http.client.HTTPConnection(address.hostname, address.port, timeout=5)
        line.putrequest("POST", "/predict")
        line.putheader("Content-Type", "application/json")
        line.putheader("Content-Length", "1000")
        line.endheaders(b"{")
        line.close()
    deadline = time.monotonic() + 10
    while post(service, make_spectrum()).status_code == 503 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert post(service, make_spectrum()).status_code == 200


def test_full_house_answers_503_at_once_and_recovers(service):
    body = arrow([make_spectrum(i) for i in range(20)])

    def one(_):
        response = post(service, body, ARROW)
        retry = response.headers.get("Retry-After")
        return response.status_code, retry if response.status_code == 503 else None

    with ThreadPoolExecutor(16) as pool:
        answers = collections.Counter(pool.map(one, range(48)))
    assert set(answers) <= {(200, None), (503, "1")}, answers
    assert answers[200, None] >= 2
    assert answers[503, "1"] >= 2, "16 clients at once should exceed 6 requests in flight"
    assert post(service, make_spectrum()).status_code == 200


def test_health_ready_model_and_pages(service):
    def get(path: str) -> requests.Response:
        response = requests.get(f"{service}{path}", timeout=TIMEOUT)
        assert response.status_code == 200, response.text
        return response

    assert get("/health").json() == {"status": "ok"}
    assert get("/ready").json() == {"status": "ready", "model_version": "test-1"}
    about = get("/model").json()
    assert (about["family"], about["data"]["card"]) == ("redshift", "sdss_coarse")
    assert "<title>skyray" in get("/").text
    assert "swagger" in get("/docs").text
    route = get("/openapi.json").json()["paths"]["/predict"]["post"]
    assert {"application/fits", "application/json", ARROW} <= set(route["requestBody"]["content"])
    assert {"200", "400", "413", "415", "422", "503"} <= set(route["responses"])
    example = route["responses"]["200"]["content"]["application/json"]["example"]
    answer = post(service, make_spectrum()).json()
    assert set(example) == set(answer)
    assert set(example["predictions"][0]) <= set(answer["predictions"][0])


def test_documented_example_is_understood(service):
    """The page's own example must be valid but for its shortened arrays."""
    schema = requests.get(f"{service}/openapi.json", timeout=TIMEOUT).json()
    body = schema["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]
    for example in body["examples"].values():
        response = post(service, example["value"])
        assert response.status_code == 422
        assert response.json()["error"]["reason"] == "too_few_good_pixels"


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["application/json", "application/fits", ARROW, "a/b", ""]),
    body=st.binary(max_size=200),
    damage=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=5),
)
def test_no_body_is_answered_with_a_server_error(service, kind, body, damage):
    if kind == ARROW:
        whole = bytearray(arrow([make_spectrum(0, 120)]))
        for at, value in damage:
            whole[at % len(whole)] = value
        body = bytes(whole)
    response = requests.post(
        f"{service}/predict", data=body, headers={"Content-Type": kind}, timeout=TIMEOUT
    )
    assert response.status_code in (200, 400, 413, 415, 422), response.text
