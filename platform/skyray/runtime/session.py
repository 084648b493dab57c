"""Starting, joining and leaving Ray: the same call on a laptop and on a cluster."""

from __future__ import annotations

import logging
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from skyray.config import ConfigError
from skyray.runtime import noise, places
from skyray.runtime.progress import is_open, waiting

OBJECT_STORE_BYTES = 1_500_000_000
CORES = "cores"  # of a private Ray's machine, which may have more logical CPUs than these


def _prepare_environment() -> None:
    """Set what Ray reads at import: no usage statistics, and a token that is the project's own.

    Since 2.59 a local Ray asks for a token; head, CLI and drivers must share one file.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if os.environ.get("RAY_AUTH_MODE", "token") == "token" and "RAY_AUTH_TOKEN" not in os.environ:
        home = places.home()
        base = places.absolute(home if places.is_local(home) else ".skyray")
        _make_token(os.environ.setdefault("RAY_AUTH_TOKEN_PATH", places.join(base, "ray-token")))


def _make_token(path: str) -> None:
    """Write a secret that only its owner may read, unless there is one; of several, one wins."""
    if places.exists(path):
        return
    with places.local_folder(places.parent(path)) as folder:
        descriptor, aside = tempfile.mkstemp(dir=folder)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(secrets.token_hex(32))
        with suppress(FileExistsError):
            os.link(aside, path)
        os.unlink(aside)


def start_ray(address: str | None = None, num_cpus: int | None = None) -> bool:
    """Join a running Ray, or start a private one; return whether this call started or joined it.

    Parameters
    ----------
    address : str, optional
        ``"auto"``, ``host:port`` or ``ray://…`` of a running cluster. Without one, the cluster of
        ``RAY_ADDRESS`` (set inside ``ray job submit``), else a private local Ray.
    num_cpus : int, optional
        Logical CPUs of a private Ray; default: at least 4, so that small machines can hold a
        training group beside its data workers.
    """
    _prepare_environment()
    address = address or os.environ.get("RAY_ADDRESS")
    if address and address != "local":
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray

    if ray.is_initialized():
        return False
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    root = Path(__file__).resolve().parents[2]
    environment = {"env_vars": {"PYTHONPATH": os.pathsep.join([str(root), str(root.parent)])}}
    if address and address != "local":
        # A submitted job has its own environment; a driver by hand gives this clone's sources.
        submitted = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
        ray.init(
            address=address,
            logging_level=logging.WARNING,
            runtime_env=None if submitted else environment,
        )
    else:
        _start_private(num_cpus, environment)
    if noise.is_kept():
        noise.workers_into_log()
    quiet_data()
    return True


def private_cpus() -> int:
    """Return how many logical CPUs a private Ray gets."""
    return max(4, len(os.sched_getaffinity(0)))


def _start_private(num_cpus: int | None, environment: dict[str, dict[str, str]]) -> None:
    import ray

    ray.init(
        address="local",
        num_cpus=num_cpus or private_cpus(),
        resources={CORES: len(os.sched_getaffinity(0))},
        object_store_memory=int(os.environ.get("SKYRAY_OBJECT_STORE", OBJECT_STORE_BYTES)),
        include_dashboard=False,
        log_to_driver=noise.is_kept() or bool(os.environ.get(noise.SHOW)),
        logging_level=logging.WARNING,
        runtime_env=environment,
    )


def require_devices(address: str | None, gpus: int, cpus: int = 0) -> None:
    """Refuse, before a private Ray is started, what this machine has not got.

    Parameters
    ----------
    gpus, cpus : int
        That the work needs at once, at least.

    Raises
    ------
    ConfigError
        If there are fewer, and no cluster is to be joined.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    if address and address != "local":
        return
    if cpus > private_cpus():
        raise ConfigError(
            f"{cpus} CPUs at once: expected at most {private_cpus()}, the logical CPUs of a "
            "private Ray here; ask for fewer workers or threads, or give --address of a cluster"
        )
    if not gpus:
        return
    if (found := local_gpus()) < gpus:
        raise ConfigError(
            f"--gpu: expected {_gpus(gpus)}, found {found} on this machine; leave it out, or give "
            "--address of a cluster that has them"
        )
    import torch

    if not torch.cuda.is_available():
        raise ConfigError(f"--gpu: expected a torch that reaches it, found {torch.__version__}")


def _gpus(count: int) -> str:
    return f"{count} GPU{'s' * (count > 1)}"


def local_gpus() -> int:
    """Return how many GPUs Ray finds on this machine, as far as CUDA_VISIBLE_DEVICES shows them."""
    _prepare_environment()
    from ray._private.accelerators import get_accelerator_manager_for_resource

    manager = get_accelerator_manager_for_resource("GPU")
    visible = manager.get_current_process_visible_accelerator_ids()
    found = manager.get_current_node_num_accelerators()
    return found if visible is None else min(found, len(visible))


def require_cluster_gpus(gpus: int) -> None:
    """Refuse work on GPUs on a Ray that has fewer, and whose autoscaler could not add them.

    Raises
    ------
    ConfigError
        If so.
    """
    import ray

    found, most = ray.cluster_resources().get("GPU", 0), resources_to_come().get("GPU", 0)
    if most < gpus:
        raise ConfigError(
            f"--gpu: expected {_gpus(gpus)}, found {found:g} on the cluster, which "
            f"grows to no more than {most:g}"
        )


def resources_to_come() -> dict[str, float]:
    """Return what the cluster has, or its autoscaler may make of it where that is more, by kind."""
    import ray
    from ray.util.client import ray as client

    # A driver that is no part of the cluster (ray://) is not told what the autoscaler may do.
    remote = client.is_connected()
    limits = ray.get(ray.remote(num_cpus=0)(_limits).remote()) if remote else _limits()
    found = ray.cluster_resources()
    return {kind: max(found.get(kind, 0), limits.get(kind, 0)) for kind in {*found, *limits}}


def _limits() -> dict[str, float]:
    from ray._private.state import state

    return state.get_max_resources_from_cluster_config() or {}


def cores_for(threads: int) -> dict[str, float]:
    """Return what a task that keeps so many cores busy asks for beside its logical CPUs.

    On a private Ray no more of them run at once than the machine has cores; elsewhere, nothing.
    """
    import ray

    cores = ray.cluster_resources().get(CORES)
    return {CORES: min(float(threads), cores)} if cores else {}


def quiet_data() -> None:
    """Set how Ray Data behaves in this process: quiet, and quick to see what there is to use."""
    from ray.data import DataContext
    from ray.data._internal.execution.resource_manager import ResourceManager

    # What there is to use is asked for without waiting, and the first answer is "nothing", which
    # holds for this long (1 s by default): until then one task runs at a time.
    ResourceManager.GLOBAL_LIMITS_UPDATE_INTERVAL_S = 0.05
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)


@contextmanager
def ray_session(
    address: str | None = None, num_cpus: int | None = None, gpus: int = 0
) -> Iterator[None]:
    """Hold a Ray session for a block; what this call started is shut down at its end.

    Raises
    ------
    ConfigError
        If the work needs `gpus` and neither this machine nor the cluster has them.
    """
    require_devices(address, gpus)
    with waiting("ray", f"the cluster at {address}" if address else "Ray to start", show=is_open()):
        import ray

        started = start_ray(address, num_cpus)
    try:
        if gpus:
            require_cluster_gpus(gpus)
        yield
    finally:
        if started:
            ray.shutdown()
