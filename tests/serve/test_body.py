"""Who may ask: loopback clients, or the bearers of a token."""

from __future__ import annotations

import pytest
from serve.body import authorise
from serve.refusal import Refusal
from serve.settings import load_settings
from starlette.requests import Request

from skyray.config import ConfigError


def request(client: str | None, authorization: str = "") -> Request:
    headers = [(b"authorization", authorization.encode("latin-1"))] if authorization else []
    address = (client, 1) if client else None
    return Request({"type": "http", "headers": headers, "client": address})


@pytest.mark.parametrize(
    ("client", "authorization", "token"),
    [
        ("127.0.0.1", "", ""),
        ("::1", "", ""),
        ("10.0.0.9", "Bearer secret", "secret"),
        ("127.0.0.1", "bearer secret", "secret"),
    ],
)
def test_passes(client, authorization, token):
    authorise(request(client, authorization), token)


@pytest.mark.parametrize(
    ("client", "authorization", "token", "status"),
    [
        ("10.0.0.9", "", "", 403),
        (None, "", "", 403),
        ("10.0.0.9", "Bearer x", "", 403),
        ("127.0.0.1", "", "secret", 401),
        ("10.0.0.9", "Bearer wrong", "secret", 401),
        ("10.0.0.9", "Basic secret", "secret", 401),
        ("10.0.0.9", "Bearer sécret", "secret", 401),
        ("10.0.0.9", "secret", "secret", 401),
    ],
)
def test_is_refused(client, authorization, token, status):
    with pytest.raises(Refusal) as refused:
        authorise(request(client, authorization), token)
    assert refused.value.status == status
    assert (status == 401) == ("www-authenticate" in refused.value.response().headers)


@pytest.mark.parametrize(
    ("args", "word"),
    [
        ({}, "bundle"),
        ({"bundle": "b", "max_batchsize": 3}, "max_batchsize"),
        ({"bundle": "b", "threads": 0}, "threads"),
        ({"bundle": "b", "min_replicas": 3, "max_replicas": 2}, "max_replicas"),
    ],
)
def test_wrong_settings_name_their_key(monkeypatch, args, word):
    monkeypatch.delenv("SKYRAY_BUNDLE", raising=False)
    with pytest.raises(ConfigError, match=word):
        load_settings(args)


def test_bundle_from_the_environment(monkeypatch):
    monkeypatch.setenv("SKYRAY_BUNDLE", "s3://b/x")
    assert load_settings({"bundle": ""}).bundle == "s3://b/x"
