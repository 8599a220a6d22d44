"""Declaration, logging and exit status of all commands."""

import errno
import inspect
import io
import logging
import re
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

import svll
from harness.base.errors import UserError, WrongUsage
from harness.base.files import denied
from harness.base.paths import expanded, unknown_in
from harness.config.help import config_help
from harness.runs.logs import log_own_packages
from harness.runs.run import Run

EXIT_STATUS = ("Exit status: 0 done; 1 an error, or a run or check that failed or was stopped; "
               "2 wrong usage; 130 interrupted.")
OVERRIDE = re.compile(r"[\w.]+ *=")
"""The start of an argument key=value, whose paths the configuration expands."""
WIDEST = 100
"""Most columns of the help on configuration keys."""
SCRIPT = re.compile(r"(?<![\w/.-])(?:python |(--nproc-per-node \d+ ))?launch/(\w+)\.py")
"""A command of this project in a text, as `python` or `torchrun` starts it."""


def show_version(is_asked: bool) -> None:
    """Print the version and end the command, where `--version` is given."""
    if is_asked:
        typer.echo(f"svll-reid {svll.__version__}")
        raise typer.Exit


Version = Annotated[bool, typer.Option(
    "--version", callback=show_version, is_eager=True, help="Print the version and exit.")]


def command(
    help_text: str | None, moved: Mapping[str, str] | None = None
) -> Callable[[Callable[..., int]], Callable[[], None]]:
    """Declare a function with typer parameters, which returns an exit status, as a whole command.
    moved: what to type instead of options that another command has now."""

    def declare(function: Callable[..., int]) -> Callable[[], None]:
        def main() -> None:
            app = new_app()
            declared = app.command(help=as_typed(help_text or ""), epilog=EXIT_STATUS)
            declared(_with_version(_with_paths(function)))
            run(app, moved)

        return main

    return declare


def subcommand(
    app: typer.Typer, as_given: Collection[str] = ()
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare a function, whose docstring is its help, as a command of an app. as_given: parameters
    with text of the user's, in which `~` and `$` mean nothing."""

    def declare(function: Callable[..., Any]) -> Callable[..., Any]:
        lines = (function.__doc__ or "").splitlines()
        text = "\n".join(line.removeprefix("    ") for line in lines)
        declared = app.command(help=as_typed(text), epilog=EXIT_STATUS)
        return declared(_with_paths(function, as_given))

    return declare


def _with_paths(
    function: Callable[..., Any], as_given: Collection[str] = ()
) -> Callable[..., Any]:
    """Expand `~` and `$VARIABLE` in a command's paths; as_given: parameters that hold none."""

    @wraps(function)
    def command(**values: Any) -> Any:
        return function(**{name: value if name in as_given else _path(value)
                           for name, value in values.items()})

    return command


def _with_version(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the option --version to a command."""

    @wraps(function)
    def command(version: bool, **values: Any) -> Any:
        return function(**values)

    own = inspect.signature(function)
    option = inspect.Parameter("version", inspect.Parameter.KEYWORD_ONLY, default=False,
                               annotation=Version)
    vars(command)["__signature__"] = own.replace(parameters=[*own.parameters.values(), option])
    return command


def _path(value: Any) -> Any:
    """Return a value with its paths expanded. Raises UserError for an unknown variable."""
    if isinstance(value, list):
        return [_path(item) for item in value]
    if not isinstance(value, str | Path) or (isinstance(value, str) and OVERRIDE.match(value)):
        return value
    path = expanded(str(value))
    if unknown := unknown_in(path):
        raise UserError(f"{value}: {unknown} is not known on this machine")
    return type(value)(path)


def new_app() -> typer.Typer:
    """Return a typer app for `run`, with plain help text, so that examples keep their lines."""
    # shells complete no options of `python FILE`
    return typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False,
                       add_completion=_is_installed())


def _is_installed() -> bool:
    """Return whether this command was started by its name, such as `svll-train`."""
    return not sys.argv[0].endswith(".py")


def as_called(text: str) -> str:
    """Return a text whose commands of this project are written as the present one was called:
    `python launch/train.py` or `svll-train`."""
    return SCRIPT.sub(_by_name, text) if _is_installed() else text


def _by_name(found: re.Match[str]) -> str:
    torchrun, name = found.groups()
    if not Path(__file__).with_name(f"{name}.py").exists():  # a user's own
        return found[0]
    return f"{torchrun}--no-python svll-{name}" if torchrun else f"svll-{name}"


def as_typed(text: str) -> str:
    """Keep the line breaks of indented paragraphs (examples) in click's help."""
    paragraphs = as_called(text).strip().split("\n\n")
    return "\n\n".join(f"\b\n{p}" if p.startswith("    ") else p for p in paragraphs)


def run(app: typer.Typer, moved: Mapping[str, str] | None = None) -> None:
    """Run an app and exit: a UserError becomes one message, never a traceback; `moved`: see
    `command`."""
    # Python puts a script's folder first on the module path, where `data.py` hides packages `data`
    own = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if not entry or Path(entry).resolve() != own]
    if isinstance(sys.stdout, io.TextIOWrapper):  # escape what the terminal cannot encode
        sys.stdout.reconfigure(errors="backslashreplace")
    set_up_logging()
    try:
        _refuse_empty(sys.argv[1:])
        status: Any = app(standalone_mode=False)  # 130 after an interrupt
    except (UserError, PermissionError) as error:
        shown = denied(error) if isinstance(error, PermissionError) else error
        print(f"error: {as_called(str(shown))}", file=sys.stderr)
        status = 2 if isinstance(error, WrongUsage) else 1
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:  # wherever such a name is first looked up
            raise
        print(f"error: {error.filename}: {error.strerror}; name another", file=sys.stderr)
        status = 1
    except typer.TyperException as error:  # wrong usage
        option, message = str(getattr(error, "option_name", None)), error.format_message()
        if moved and option in moved:
            message = f"{option} is not an option of this command; use {as_called(moved[option])}"
        print(f"error: {message} (see {sys.argv[0]} --help)", file=sys.stderr)
        status = error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        status = 130
    if status == 130:
        print("interrupted", file=sys.stderr)
    sys.exit(status or 0)


def _refuse_empty(words: Sequence[str]) -> None:
    """Raise WrongUsage for an empty word: as a path it would be the current folder."""
    for number, word in enumerate(words, start=1):
        if not word.strip() or re.fullmatch(r"--[\w-]+=\s*", word):
            raise WrongUsage(f"word {number} of the command line, {word!r}, is empty: was a "
                             "variable not set?")


def set_up_logging() -> None:
    """Log our own packages to stderr: coloured in a terminal, plain lines elsewhere."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.logging import RichHandler

        handler: logging.Handler = RichHandler(
            console=Console(stderr=True), show_path=False, log_time_format="%H:%M:%S"
        )
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log_own_packages(handler)
    logging.basicConfig(handlers=[handler], level=logging.WARNING)


def refuse_without(needed: str, is_there: object, given: Mapping[str, object]) -> None:
    """Raise WrongUsage for options that have no effect without another one."""
    names = [name for name, value in given.items()
             if value is not None and value is not False and value not in ([], ())]
    if names and not is_there:
        raise WrongUsage(f"{', '.join(names)} without {needed} has no effect; add {needed}")


def print_config_help(schemas: Mapping[str, type], words: Sequence[str]) -> None:
    """Print the help on configuration keys (see `config_help`), as wide as the terminal."""
    typer.echo(config_help(schemas, words, min(WIDEST, shutil.get_terminal_size().columns)))


def print_result(finished: Run) -> None:
    """Print a complete run's metrics on each test set, and its folder."""
    try:
        lines = list(_result_lines(finished.result() or {}))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{finished.result_file}: cannot be read ({error!r}); put a copy back, or "
                        "delete this file and give the command again") from None
    lines.append(("files", str(finished.folder)))
    width = max(map(len, ["validation", *(label for label, _ in lines)]))
    for label, text in lines:
        typer.echo(f"{label:{width}} {text}")


def _result_lines(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield a label and the metrics of each test set, and of the validation part."""
    tests: Mapping[str, Any] = result.get("tests") or {"test": result}
    for name, numbers in tests.items():
        for label, found in {name: numbers, "before training": numbers.get("initial")}.items():
            if found:
                rank1 = found["cmc"]["1"]
                protocol = f"  {found['protocol']}" if "protocol" in found else ""
                yield label, f"mAP {found['mAP']:.4f}  Rank-1 {rank1:.4f}{protocol}"
    if validation := result.get("validation"):
        yield "validation", f"mAP {validation['mAP']:.4f}"
