"""What the commands share: flags made from the option classes, loading a model, and how errors are told."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from videox2l.errors import MemoryFileError, MemoryWarning, ModelWarning, SettingsError, VideoWarning, X2LError
from videox2l.options import LoadOptions, OptionSet
from videox2l.units import as_times, times_of_lines

if TYPE_CHECKING:
    from videox2l.ask.escalation import Escalation
    from videox2l.cli.console import Screen
    from videox2l.pipeline import VideoX2L

Model = Annotated[
    str,
    typer.Option(
        help='"demo", "demo-dense", "demo-boards", "demo-xl", a local directory, or a Hugging Face hub id.',
        metavar="demo|ID|DIR",
    ),
]
MemoryArg = Annotated[str, typer.Argument(help="A memory: a folder, or a URL such as s3://...", metavar="MEMORY")]
EscalateBelow = Annotated[
    float | None,
    typer.Option(
        help="With --escalate: sure below this mean entropy of the answer's tokens. [default: 0.1]", metavar="NATS"
    ),
]
EscalateFrom = Annotated[
    int | None,
    typer.Option(help="With --escalate: chunks to begin with; 0 begins from H. [default: 1]", metavar="CHUNKS"),
]
Report = Annotated[
    Path | None,
    typer.Option(help="Write questions, answers and pictures as one page that stands alone.", metavar="FILE.html"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Tell scores, levels, stages and bytes too.")]
Keywords = dict[str, Any]


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Make a command of a function: each parameter that is an `OptionSet` becomes a flag for each of its fields.

    The function gets the object, made of the flags that were given; what the classes refuse is told as any error of the
    user. A parameter named `given` gets the flags that were typed.
    """
    signature = inspect.signature(function, eval_str=True)
    parameters, sets = [], {}
    for parameter in signature.parameters.values():
        kind = parameter.annotation
        if inspect.isclass(kind) and issubclass(kind, OptionSet):
            sets[parameter.name] = kind
            parameters += [_flag(parameter.name, field) for field in _shown(kind)]
        elif parameter.name != "given":
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(function)
    def run(**values: Any) -> None:
        with user_errors():
            given = set()
            for name, kind in sets.items():
                keywords: Keywords = {}
                for field in _shown(kind):
                    value = values.pop(f"{name}__{field.name}")
                    if value is not None and value != []:
                        keywords[field.name] = _read(field, value)
                        given.add(_name(field))
                values[name] = kind.from_keywords(None, keywords)
            if "given" in signature.parameters:
                values["given"] = given
            function(**values)

    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del run.__wrapped__  # typer would read its signature
    return run


def _shown(kind: Any) -> list[dataclasses.Field[Any]]:
    return [field for field in dataclasses.fields(kind) if not field.metadata.get("hidden")]


def _name(field: dataclasses.Field[Any]) -> str:
    return str(field.metadata.get("flag") or "--" + field.name.replace("_", "-"))


def flag_names(kind: type[OptionSet]) -> list[str]:
    """Return the flags of an option class, such as --max-pixels."""
    return [_name(field) for field in _shown(kind)]


def _flag(owner: str, field: dataclasses.Field[Any]) -> inspect.Parameter:
    """Return the parameter for a field: None where its flag is not given, so that the class's own default holds."""
    told, default, name = field.metadata, field.default, _name(field)
    kind = told.get("type") or (type(default) if default is not None else str)
    shown = told.get("show") or ("" if default in (None, (), False) else str(default))
    help_text = told["help"] + (f" (default: {shown})" if shown and kind is not bool else "")
    flags = [f"{name}/--no-{name.removeprefix('--')}"] if default is True else [name]
    option = typer.Option(*flags, help=help_text, metavar=told.get("metavar"), show_default=False)
    return inspect.Parameter(
        f"{owner}__{field.name}",
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, option],
    )


def _read(field: dataclasses.Field[Any], value: Any) -> Any:
    """Read what has a form of its own on the command line: files of JSON, and values that may be JSON."""
    name, reads = _name(field), field.metadata.get("reads")
    if reads == "times":
        return _times(value, name)
    if reads == "json":
        return json_value(_text(value, name), f"{name} {value}")
    begins = {"--device-map": "{", "--choices": "["}.get(name)
    return json_value(value, name) if begins and value.startswith(begins) else value


def _text(file: str, name: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise SettingsError(f"{name}: '{file}' cannot be read: {error}") from None


def _times(value: str, name: str) -> tuple[float, ...] | None:
    """Read times: what could be a list of them is one, all else a file. Raises SettingsError."""
    if re.fullmatch(r"[\d:.,\s]*", value) or ("," in value and not os.path.exists(value)):
        return as_times(value, name)
    if not os.path.exists(value):
        raise SettingsError(f"{name}: '{value}' is neither a time nor a file of times: write 0:05,0:12.5,1:03")
    return times_of_lines(_text(value, name), f"{name} {value}")


def load_model(model: str, options: LoadOptions, screen: Screen) -> VideoX2L:
    """Load a model behind a spinner."""
    with screen.waiting(f"loading {model}"):
        from transformers.utils import logging

        from videox2l.pipeline import VideoX2L

        logging.disable_progress_bar()
        x2l = VideoX2L.from_pretrained(model, options)
        choose_threads(x2l)
        return x2l


_SMALL = 20_000_000


def choose_threads(x2l: VideoX2L) -> None:
    """Let a small model on a CPU run on one thread, unless OMP_NUM_THREADS says how many: more wait for each other."""
    import torch

    weights: Iterable[Any] = getattr(getattr(x2l.backbone, "model", None), "parameters", tuple)()
    small = sum(weight.numel() for weight in weights) < _SMALL
    if small and x2l.backbone.device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def json_value(text: str, what: str) -> Any:
    """Read the JSON text of the option `what`."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise SettingsError(f"{what}: '{text:.40}' is no JSON: {error}") from None


def escalation(wanted: Any, below: float | None, start: int | None) -> bool | Escalation:
    """Return what --escalate, --escalate-below and --escalate-from ask for."""
    from videox2l.ask.escalation import Escalation

    for name, value in (("below", below), ("from", start)):
        if value is not None and not wanted:
            raise SettingsError(f"--escalate-{name} goes with --escalate: give both")
    plain = Escalation()
    return bool(wanted) and Escalation(plain.below if below is None else below, plain.start if start is None else start)


def check_there(*places: str | Path, memory: bool = False) -> None:
    """Raise VideoError, or MemoryFileError where only a `memory` will do, for a local path at which nothing is.

    What opens them says the same, but seconds later: it needs torch.
    """
    for place in map(str, places):
        if "://" in place or place == "-" or os.path.lexists(place):
            continue
        if memory:
            raise MemoryFileError(f"'{place}' holds no memory: make one of a video with x2l ingest VIDEO {place}")
        from videox2l.video.files import admit

        admit(place)


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turn errors that a user can mend into one line on stderr; warnings into one line each.

    The exit status is 2 for a wrong use (SettingsError), 1 for a failure, 130 when interrupted.
    """

    def show(message: Warning | str, *_: object, **__: object) -> None:
        sys.stderr.write(f"warning: {message}\n")

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of libraries; a user cannot act on them
            for kind in (VideoWarning, MemoryWarning, ModelWarning):
                warnings.simplefilter("always", kind)
            warnings.showwarning = show
            yield
    except X2LError as error:
        sys.stderr.write(f"error: {error}\n")
        raise typer.Exit(2 if isinstance(error, SettingsError) else 1) from None
    except OSError as error:  # a full disk, a folder that may only be read
        if error.strerror is None or isinstance(error, BrokenPipeError):
            raise
        sys.stderr.write(f"error: {error}\n")
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        raise typer.Exit(130) from None
