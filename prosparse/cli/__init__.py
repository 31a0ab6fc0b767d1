"""The command line: parse, build a config, call one function.

Results go to stdout, progress and log to stderr. Exit status: 0 done, 1 run-time failure, 2 wrong input, 130 Ctrl-C.
Nothing heavy is imported before a command runs, so `--help` answers at once.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import io
import logging
import os
import sys
from collections.abc import Sequence

from .. import __version__
from ..errors import ProsparseError, UserError
from . import bench, chat, convert, demo, doctor, generate, measure, perplexity, plan, predictor, profile_neurons, synth

COMMANDS = (
    demo, generate, chat, bench, perplexity, measure, profile_neurons, predictor, plan, synth, convert, doctor,
)  # fmt: skip
DEBUG_HELP = "show the traceback of an error, and debug log lines"


class _Parser(argparse.ArgumentParser):
    """Wrong usage ends in one line that says where help is."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError(f"{_name(self.prog)}{message}; see {self.prog} --help")


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="prosparse",
        description="Run ReLU-sparse language models by reading only the weights that matter.",
        epilog="Start with: prosparse demo",
    )
    parser.add_argument("--version", action="version", version=f"prosparse {__version__}")
    parser.add_argument("--debug", action="store_true", help=DEBUG_HELP)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    for module in COMMANDS:
        sub = commands.add_parser(module.NAME, help=module.HELP, description=module.DESCRIPTION)
        sub.add_argument("--debug", action="store_true", help=DEBUG_HELP)
        module.add_arguments(sub)
        sub.set_defaults(run=module.run, parser=sub)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    debug = "--debug" in argv
    _set_up_output()
    _set_up_log(debug)
    try:
        parser = build_parser()
        _check_command(argv)
        args, unknown = parser.parse_known_args(argv)
        if unknown:
            raise UserError(_unknown(unknown[0], args))
        if args.command is None:
            parser.print_help()
            return 0
        status: int = args.run(args)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return _fail("interrupted", 130, debug)
    except BrokenPipeError:
        # The reader went away (`prosparse ... | head`); what is still buffered has nowhere to go.
        _leave_output()
        return 1
    except ProsparseError as error:
        return _fail(str(error), 2 if isinstance(error, UserError) else 1, debug)
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC and error.filename is None:
            _leave_output()
            return _fail("stdout: cannot be written: the disk is full; free some space, or write elsewhere", 1, debug)
        if str(error).startswith("PROSPARSE_"):  # kernels read their environment, and know no UserError
            return _fail(f"{error}; set it to one of these, or unset it", 2, debug)
        return _fail(f"unexpected {type(error).__name__}: {error}; run again with --debug and report it", 1, debug)


def _check_command(argv: Sequence[str]) -> None:
    """Insist that the first argument that is no option names a command."""
    given = next((word for word in argv if not word.startswith("-")), None)
    names = [module.NAME for module in COMMANDS]
    if given is not None and given not in names:
        close = difflib.get_close_matches(given, names, 1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}"
        raise UserError(f"there is no command {given}; {hint}")


def _unknown(argument: str, args: argparse.Namespace) -> str:
    """The error for an argument that the command does not have, with the option that was probably meant."""
    parser: argparse.ArgumentParser | None = getattr(args, "parser", None)
    if parser is None:
        return f"unknown option {argument}; see prosparse --help"
    known = [name for action in parser._actions for name in action.option_strings]
    close = difflib.get_close_matches(argument.split("=", 1)[0], known, 1) if argument.startswith("-") else []
    hint = f"did you mean {close[0]}?" if close else f"see {parser.prog} --help"
    kind = "unknown option" if argument.startswith("-") else "unexpected argument"
    return f"{_name(parser.prog)}{kind} {argument}; {hint}"


def _name(prog: str) -> str:
    """How a message begins: the line itself begins with the program's name."""
    command = prog.removeprefix("prosparse").strip()
    return f"{command}: " if command else ""


def _leave_output() -> None:
    """Let what is still buffered for stdout go nowhere, so that the interpreter does not fail on it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _set_up_output() -> None:
    """What a terminal cannot show appears as a question mark; without a stdout, output goes nowhere."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _fail(message: str, status: int, debug: bool) -> int:
    print(f"prosparse: {' '.join(message.split())}", file=sys.stderr)  # noqa: T201
    if debug:
        logging.getLogger("prosparse").debug("traceback", exc_info=True)
    return status


def _set_up_log(debug: bool) -> None:
    logger = logging.getLogger("prosparse")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("prosparse: %(message)s"))
    logger.handlers[:] = [handler]
    logger.setLevel(logging.DEBUG if debug else logging.INFO)
    logger.propagate = False
