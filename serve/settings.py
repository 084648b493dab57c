"""What an operator may set for the prediction service; every key is checked when it is deployed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from skyray.config import Config, ConfigError

BUNDLE_VARIABLE = "SKYRAY_BUNDLE"


class ServiceSettings(Config):
    """Arguments of ``serve.app:app`` (``args:`` in ``serve/config.yaml``)."""

    bundle: str = Field(description="folder or URI of the trained bundle; default: SKYRAY_BUNDLE")
    card: str | None = Field(
        None,
        description="card whose reader decodes uploads; default: the bundle's own",
    )
    max_body_mib: float = Field(64, gt=0, description="largest request body accepted, MiB")
    max_records: int = Field(1000, gt=0, description="most records in one request")
    body_timeout_s: float = Field(20, gt=0, description="time a client has to send its body")
    decode_processes: int = Field(2, ge=1, description="bodies an HTTP replica decodes at once")
    decode_seconds: float = Field(
        5, gt=0, description="processor time of decoding a body; half a second a MiB is added"
    )
    decode_memory_mib: float = Field(
        512, gt=0, description="memory of decoding a body, MiB; 8 times its size is added"
    )
    predict_timeout_s: float = Field(30, gt=0, description="time a prediction may take")
    max_in_flight: int = Field(32, gt=0, description="requests one HTTP replica works on at once")
    http_replicas: int = Field(1, gt=0, description="replicas that decode and encode")
    max_batch_size: int = Field(64, gt=0, description="records predicted together")
    batch_wait_s: float = Field(0.01, ge=0, description="time a batch waits to fill up")
    min_replicas: int = Field(1, ge=1, description="model replicas kept running")
    max_replicas: int = Field(2, ge=1, description="model replicas at full load")
    target_ongoing: float = Field(4, gt=0, description="calls per replica autoscaling aims at")
    max_ongoing: int = Field(16, gt=0, description="calls a model replica takes at once")
    max_queued: int = Field(
        32, ge=4, description="calls waiting for a replica before 503; one request makes up to 4"
    )
    cpus_per_replica: float = Field(1, gt=0, description="logical CPUs of a model replica")
    gpus_per_replica: float = Field(0, ge=0, description="GPUs of a model replica")
    threads: int = Field(1, ge=1, description="CPU threads torch uses in a model replica")

    @property
    def max_body_bytes(self) -> int:
        return int(self.max_body_mib * 2**20)


def load_settings(args: Mapping[str, Any] | None) -> ServiceSettings:
    """Check the arguments of the application; an empty `bundle` is taken from the environment.

    Raises
    ------
    ConfigError
        If a key is unknown or of the wrong type, or no bundle is named.
    """
    values = dict(args or {})
    values["bundle"] = values.get("bundle") or os.environ.get(BUNDLE_VARIABLE, "")
    if not values["bundle"]:
        raise ConfigError(
            f"bundle: expected the folder or URI of a trained bundle, found nothing; give --bundle,"
            f" set args.bundle in the configuration, or {BUNDLE_VARIABLE}"
        )
    settings = ServiceSettings.load(values)
    if settings.max_replicas < settings.min_replicas:
        raise ConfigError(
            f"max_replicas: expected ≥ min_replicas = {settings.min_replicas}, "
            f"found {settings.max_replicas}"
        )
    return settings
