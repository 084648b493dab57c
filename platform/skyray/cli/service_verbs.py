"""The verbs that do not end by themselves: streams are followed, a service answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from skyray.cli.verb import Address, BundleUri, Json, Progress, cluster, devices, show, verb, write


@verb
def follow(
    bundle: BundleUri,
    source: Annotated[
        str, typer.Argument(help="Folder that survey files arrive in, or kafka://HOST:PORT/TOPIC.")
    ],
    out: Annotated[str, typer.Option(help="Folder of scored/ and refused/.")],
    card: Annotated[
        str | None, typer.Option(help="Card of the stream; default: the bundle's own.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Scorers at work at once.")] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Deliveries scored together.")] = 128,
    idle: Annotated[
        float | None, typer.Option(help="Stop after so many seconds without a delivery.")
    ] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="One GPU a scorer.")] = False,
    progress: Progress = True,
    address: Address = None,
    json: Json = None,
):
    """Score a stream as it comes: each object once, even after a crash. Ctrl-C ends it.

    Example: skyray follow bundle packets/ --out scored --idle 60
    """
    gpus = workers if gpu else 0
    devices(address, gpus)
    from dataclasses import asdict

    from skyray.cards import load_card
    from skyray.cli.beforehand import check_bundle, check_there, check_writable

    check_bundle(bundle)
    if card is not None:
        load_card(card)
    check_there([] if source.startswith("kafka://") else [source])
    check_writable(out)
    with cluster("follow", address, gpus):
        from skyray.inference.follow import follow as run

        done = run(
            bundle, source, out, card=card, workers=workers, batch=batch, idle_s=idle,
            use_gpu=gpu, progress=progress,
        )  # fmt: skip
    return asdict(done)


@verb
def serve(
    config: Annotated[
        Path | None, typer.Argument(help="Serve configuration; default: serve/config.yaml.")
    ] = None,
    bundle: Annotated[str | None, typer.Option(help="Bundle to serve.")] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to bind; others than loopback need a token.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port to bind.")] = None,
    address: Address = None,
    json: Json = None,
):
    """Serve a bundle over HTTP until Ctrl-C; explorer page at /, API at /docs.

    With --json, the file appears when the service is ready and holds its address.

    Example: skyray serve --bundle bundle --port 8000
    """
    from skyray.cli.beforehand import check_bundle
    from skyray.inference.serving import load_service, running_service, wait_for_signal

    place = config or Path(__file__).resolve().parents[3] / "serve" / "config.yaml"
    args = {"bundle": bundle} if bundle else {}
    loaded = load_service(place, args, host, port)
    for application in loaded.applications:
        if given := application.args.get("bundle"):
            check_bundle(given)
    with cluster("serve", address), running_service(loaded) as url:
        result = {"service": url, "explorer": f"{url}/", "API": f"{url}/docs", "stop": "Ctrl-C"}
        show("serve", result)
        if json is not None:
            write(json, result)
        wait_for_signal()
