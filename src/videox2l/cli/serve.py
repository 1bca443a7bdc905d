"""The command `x2l serve`."""

from __future__ import annotations

import ipaddress
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from videox2l.cli.options import Model, command, load_model
from videox2l.errors import SettingsError
from videox2l.options import LoadOptions, ServeOptions

if TYPE_CHECKING:
    from videox2l.serve.service import Service


@command
def serve(
    model: Model = "demo",
    *,
    serving: ServeOptions,
    loading: LoadOptions,
    add_key: Annotated[
        str | None,
        typer.Option(help="Add a key to --api-key-file, print it and end: anna:ask,ingest", metavar="NAME[:SCOPES]"),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Print what would be served, and what is risky.")] = False,
) -> None:
    """Serve memories over HTTP: OpenAI's chat completions, files, memories, and a page in the browser."""
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise SettingsError(f"x2l serve needs '{error.name}': pip install 'videox2l[serve]'") from None
    from videox2l.cli.console import Screen

    screen = Screen()
    keys = None if serving.api_key_file is None else Path(serving.api_key_file)
    if add_key is not None:
        from videox2l.serve.keys import add_key as make

        if keys is None:
            raise SettingsError("--add-key goes with --api-key-file: name the file to add it to")
        screen.line(make(keys, add_key))
        return
    risks = check_options(serving)
    if check:
        screen.line(f"model {model}, library {serving.library}, http://{serving.host}:{serving.port}")
        for risk in risks:
            screen.line(f"  risk: {risk}")
        return
    for risk in risks:
        sys.stderr.write(f"warning: {risk}\n")
    from videox2l.serve.logs import log_to_stderr

    log_to_stderr(serving.log_format == "json")
    if serving.ray is not None:
        run_on_ray(model, loading, serving)
        return
    x2l = load_model(model, loading, screen)
    from videox2l.serve.service import Service

    run(Service(x2l, model, serving))


def run_on_ray(model: str, loading: LoadOptions, options: ServeOptions) -> None:
    """Serve with the model in replicas on a Ray cluster.

    They end with this process. Where it is killed they stay, and the next start finds them; on a cluster of its own
    they go with the cluster.
    """
    try:
        from ray import serve as ray_serve

        from videox2l.serve.cluster import ClusterService, connected, deploy
    except ImportError:
        raise SettingsError("x2l serve --ray needs Ray Serve: pip install 'videox2l[serve,scale]'") from None
    assert options.ray is not None
    with connected(options.ray):
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # Ray's handler ends with another status
        handle, name = deploy(model, loading, options)
        try:
            run(ClusterService(handle, name, model, options))
        finally:
            if options.ray != "local":
                ray_serve.delete(name)


def check_options(options: ServeOptions) -> list[str]:
    """Return what is risky. Raises SettingsError for what is not served."""
    try:
        loopback = options.host == "localhost" or ipaddress.ip_address(options.host).is_loopback
    except ValueError:
        loopback = False
    if not loopback and options.api_key_file is None:
        raise SettingsError(f"host {options.host} can be reached by others: give --api-key-file, or serve 127.0.0.1")
    risks = []
    if not loopback:
        risks.append("keys travel unencrypted: put a proxy with TLS in front")
    for root in options.allow_files:
        path = Path(root)
        if not path.is_dir():
            raise SettingsError(f"--allow-files {root} is no folder")
        if path.resolve() in (Path("/"), Path.home()):
            risks.append(f"--allow-files {root} lets every client read all videos there")
    if options.allow_hosts:
        risks.append(f"clients may have videos fetched from {', '.join(options.allow_hosts)}")
    if options.quota is None:
        risks.append("no --quota: uploads may fill the disk")
    return risks


def run(service: Service) -> None:
    """Serve until a signal ends it."""
    import resource

    import uvicorn

    from videox2l.serve.app import make_app

    options = service.options
    if options.demo:
        add_demo(service)

    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a connection takes a file

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: Any) -> None:
            service.stopping.set()  # ends event streams
            super().handle_exit(sig, frame)

    config = uvicorn.Config(
        make_app(service),
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=30,
        limit_concurrency=1000,
        h11_max_incomplete_event_size=32 << 10,
    )
    with listen(options.host, options.port) as listener:
        host = f"[{options.host}]" if ":" in options.host else options.host
        sys.stdout.write(f"serving {service.model} at http://{host}:{listener.getsockname()[1]}\n")
        sys.stdout.flush()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        Server(config).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """Return a socket bound to an address, at port 0 to a free port. Raises SettingsError.

    It names its protocol, so that asyncio sends each piece at once (TCP_NODELAY); else the second piece of a response
    waits some 40 ms for the acknowledgement of the first one.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise SettingsError(f"cannot listen at {host}:{port}: {error.strerror}") from None
    return listener


def add_demo(service: Service) -> None:
    """Render a video of the demo world, and begin its ingest."""
    from videox2l.demo.render import render_video
    from videox2l.serve.keys import LOCAL

    name = "demo.mp4"
    record = next((file for file in service.files.of(LOCAL) if file.filename == name), None)
    if record is None:
        target = service.files.folder / ".demo.mp4"
        render_video(target, 0, 3.0)
        record = service.files.take(name, target, LOCAL)
    service.catalog.create(service.upload(record.id, LOCAL), {}, LOCAL)
