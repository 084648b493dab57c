"""The verbs of the model registry and of what MLflow has not been told."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from skyray.cli.verb import (
    Address,
    BundleUri,
    Json,
    ReplicaGpu,
    Split,
    cluster,
    devices,
    verb,
)


@verb
def promote(
    bundle: BundleUri,
    data: Annotated[str, typer.Option(help="Dataset that it and the champion are scored on.")],
    if_: Annotated[
        list[str],
        typer.Option("--if", help="'SCORE>NUMBER' or 'SCORE>champion'. Repeat: all hold."),
    ],
    out: Annotated[str, typer.Option(help="Folder for the scores of both.")],
    split: Split = "test",
    gpu: ReplicaGpu = False,
    address: Address = None,
    json: Json = None,
):
    """Make a bundle the champion of its name if it scores better on the same data.

    Example: skyray promote models:/skyray-redshift-sdss_dr16@candidate --data mock
    --if "accuracy>champion" --out scores
    """
    devices(address, int(gpu))
    from skyray.cli.beforehand import check_bundle, check_writable
    from skyray.inference.promote import Condition
    from skyray.inference.promote import promote as run

    for condition in if_:
        Condition.parse(condition)
    chosen = None if split == "all" else split
    check_bundle(bundle, data, chosen)
    check_writable(out)
    with cluster("promote", address, int(gpu)):
        done = run(bundle, data, out, if_, split=chosen, use_gpu=gpu)
    return done.summary()


@verb
def sync(
    to: Annotated[
        str | None, typer.Option(help="New address of the server the messages were for.")
    ] = None,
    json: Json = None,
):
    """Send MLflow what it has not taken yet of all runs in SKYRAY_HOME.

    Example: skyray sync
    """
    if to is not None and "://" not in to and to.partition(":")[0] != "databricks":
        from skyray.config import ConfigError

        raise ConfigError(f"--to {to}: expected an address such as http://tracking.new:5000")
    from skyray.bundles import registry  # noqa: F401  (it sends models and their cards)
    from skyray.runtime import outbox, tracking  # noqa: F401

    found = outbox.sync(to)
    told: dict[str, Any] = {
        "runs": len(found),
        "sent": sum(run.sent for run in found.values()),
        "waiting": sum(run.waiting for run in found.values()),
        "refused": sum(run.refused for run in found.values()),
    }
    if causes := sorted({run.cause for run in found.values() if run.cause}):
        told["cause"] = causes
    if refusals := [line for run in found.values() for line in run.refusals]:
        told["not told"] = refusals
    return told | {"failed": told["waiting"] + told["refused"] > 0}
