"""The two ways to start the service: `skyray serve`, and `serve deploy` on a running head."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import requests
import yaml
from tests.ray_head import ROOT, free_port, program, ray_head
from tests.serve.conftest import make_spectrum

from skyray.config import ConfigError
from skyray.inference.serving import TOKEN_VARIABLE, load_service

CONFIG = ROOT / "serve" / "config.yaml"
TOKEN = "a-long-random-token"


def ask(url: str, token: str = "") -> requests.Response:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return requests.post(f"{url}/predict", json=make_spectrum(), headers=headers, timeout=30)


def test_configuration_is_read_and_changed(monkeypatch):
    config = load_service(CONFIG, {"bundle": "b"}, port=1234)
    assert (config.http_options.host, config.http_options.port) == ("127.0.0.1", 1234)
    assert config.applications[0].args["bundle"] == "b"
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    assert load_service(CONFIG, host="0.0.0.0").http_options.host == "0.0.0.0"


def test_open_service_without_token_is_refused(monkeypatch):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    with pytest.raises(ConfigError, match=TOKEN_VARIABLE):
        load_service(CONFIG, host="0.0.0.0")


@pytest.mark.parametrize("text", ["", "applications: 3", "applications: [{args: 1}]", "{: :"])
def test_damaged_configuration_is_a_config_error(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match="not a Serve configuration"):
        load_service(tmp_path / "c.yaml")


@pytest.mark.slow
def test_skyray_serve_answers_until_it_is_stopped(bundle, tmp_path):
    ready = tmp_path / "ready.json"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "platform"), TOKEN_VARIABLE: TOKEN,
                   "SKYRAY_HOME": str(tmp_path), "SKYRAY_OBJECT_STORE": "200000000"}  # fmt: skip
    environment.pop("RAY_AUTH_TOKEN_PATH", None)
    command = [sys.executable, "-m", "skyray.cli", "serve", "--bundle", str(bundle),
               "--port", str(free_port()), "--json", str(ready)]  # fmt: skip
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 180
        while not ready.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.3)
        assert ready.exists(), (tmp_path / "log").read_text()
        url = json.loads(ready.read_text())["service"]
        assert ask(url).status_code == 401
        assert ask(url, "wrong").json()["error"]["reason"] == "token_wrong"
        assert requests.get(f"{url}/model", timeout=30).status_code == 401
        assert requests.get(f"{url}/health", timeout=30).status_code == 200
        assert ask(url, TOKEN).status_code == 200
    finally:
        process.send_signal(signal.SIGTERM)
    assert process.wait(90) == 0, (tmp_path / "log").read_text()


@pytest.mark.slow
def test_serve_deploy_on_a_running_head(bundle, tmp_path):
    """As config.yaml says: Ray started with the sources on its path, then `serve deploy`."""
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    config["http_options"]["port"] = free_port()
    place = tmp_path / "config.yaml"
    place.write_text(yaml.safe_dump(config))
    sources = os.pathsep.join([str(ROOT / "platform"), str(ROOT)])
    with ray_head(tmp_path / "home", PYTHONPATH=sources, SKYRAY_BUNDLE=str(bundle)) as head:
        done = head.run(program("serve"), "deploy", "-a", head.dashboard, str(place))
        assert done.returncode == 0, done.stderr
        url = f"http://127.0.0.1:{config['http_options']['port']}"
        deadline = time.monotonic() + 150
        while time.monotonic() < deadline:
            try:
                if requests.get(f"{url}/ready", timeout=10).status_code == 200:
                    break
            except requests.RequestException:
                time.sleep(1)
        else:
            state = head.run(program("serve"), "status", "-a", head.dashboard)
            pytest.fail(state.stdout[-3000:])
        answer = ask(url)
        assert answer.status_code == 200
        assert answer.json()["model_version"] == "test-1"
