"""The command line: one small file per command. Importing it imports no torch, so `--help` is quick.

A ValueError is a message for people: it is printed as it stands, without a traceback, and the exit code is 2.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import typer

from anymix.cli import cache, data
from anymix.cli.caption import caption
from anymix.cli.chat import chat
from anymix.cli.demo import demo
from anymix.cli.diagnose import diagnose
from anymix.cli.doctor import doctor
from anymix.cli.export import export
from anymix.cli.generate import generate
from anymix.cli.merge import merge
from anymix.cli.paddlemix import paddlemix
from anymix.cli.predict import predict
from anymix.cli.report import report
from anymix.cli.train import train

app = typer.Typer(
    name="anymix",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Fine-tune and run multimodal models on any accelerator.",
)
for command in (demo, train, chat, generate, predict, caption, merge, export, report, doctor, diagnose):
    app.command()(command)
# Their flags are not ours to know here: what is unknown stands in the words, in its order.
app.command(context_settings={"ignore_unknown_options": True})(paddlemix)
app.add_typer(data.app, name="data")
app.add_typer(cache.app, name="cache")


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        from anymix import __version__

        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Entry point of `anymix` and `python -m anymix`."""
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except ValueError as error:
        if os.environ.get("ANYMIX_TRACEBACK"):
            raise
        sys.stderr.write(f"anymix: {error}\n")
        sys.exit(2)
    except (ImportError, OSError, RuntimeError) as error:
        _explain(error)
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        sys.exit(130)
    except Exception as error:
        _mistyped(error)


def _mistyped(error: Any) -> None:
    """An option that is not there, or of another kind, as one sentence instead of a box of them.

    Which package such errors come from differs between versions of typer; what they can do does not."""
    if type(error).__name__ == "Abort":
        sys.stderr.write("\n")
        sys.exit(130)
    if not hasattr(error, "format_message"):
        raise error
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        sys.exit(error.exit_code)
    said = " ".join(error.format_message().split()).rstrip(".?")
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "anymix"
    sys.stderr.write(f"anymix: {said[:1].lower()}{said[1:]}; `{command} --help` lists what there is\n")
    sys.exit(error.exit_code)


def _explain(error: Exception) -> None:
    """A broken torch, torch_npu or torchvision raises while it is imported: say what is wrong, not where.

    Anything else is ours or a library's fault and keeps its traceback."""
    from anymix.device import faults

    known = faults.explain(faults.whole(error))
    if known is None and isinstance(error, OSError) and error.filename and error.strerror:
        sys.stderr.write(f"anymix: {error.filename}: {error.strerror}; check the path, its rights and the disk\n")
        sys.exit(2)
    if known is None:
        raise error
    sys.stderr.write(f"anymix: {faults.sentence(faults.whole(error))}; `anymix doctor` shows all of it\n")
    sys.exit(1)
