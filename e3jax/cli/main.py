"""Arguments of all commands, and how commands end; each command imports what it needs itself.

So ``e3jax --help`` imports no array library, and ``e3jax quarantine`` no JAX.
"""

import argparse
import contextlib
import importlib
import os
import re
import traceback
from collections.abc import Sequence
from pathlib import Path

from e3jax import choices, cli
from e3jax.version import VERSION
from e3jax.work import exits


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command and its arguments; those that cannot be end the program with code 2."""
    parser = argparse.ArgumentParser(
        prog="e3jax",
        description=cli.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"e3jax {VERSION}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_rank(commands)
    _add_bank(commands)
    _add_score(commands)
    _add_views(commands)
    _add_quarantine(commands)
    args = parser.parse_args(arguments)
    if getattr(args, "ray_address", None) and args.engine != "ray":
        parser.error("--ray-address needs --engine ray")
    return args


def _add_rank(commands) -> None:
    parser = _command(commands, "rank", "learn a folder of images and rank its images")
    add = parser.add_argument
    _add_photos(parser, "PHOTOS")
    add("--out", type=path, default="report", help="folder for the report")
    add("--contamination", type=_contamination, default=0.1, help="share of outliers, or auto")
    add("--save", type=path, metavar="MODEL", help="save the trained detector to this file")
    add("--seed", type=int, default=0, help="seed of all randomness")
    add("--time-budget", type=_seconds, metavar="TIME", help="approximate, e.g. 90s, 5m or 1h")
    add("--steps", type=int, help="length of the training (default: depends on collection size)")
    add(
        "--evidence",
        default="all",
        choices=choices.EVIDENCE,
        help="network: only the paper's method",
    )
    add("--rule", default="ne", help="how the network scores a view: ne, pl or mp")
    add("--network", default="auto", help="e.g. wrn-10-4 (auto: by the hardware)")
    add("--operations", default="RA+IA+PR", help="families of operations, e.g. RA or RA+IA")
    text = "number of operations used for scoring (default: depends on collection size)"
    add("--score-operations", type=int, metavar="N", help=text)
    _add_shape(parser)
    _add_engine(parser)
    _add_shard(parser)


def _add_bank(commands) -> None:
    text = "read folders of images once, or join banks, into a bank that rank and score take"
    parser = _command(commands, "bank", text)
    _add_photos(parser, "PHOTOS")
    parser.add_argument("--out", type=path, default="bank", help="folder for the bank")
    _add_shape(parser)
    _add_engine(parser)


def _add_shape(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--image-size", type=int, default=32, help="side to which images are resized, even")
    add("--resize", default="squash", choices=choices.FITS, help="how images become square")


def _add_engine(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--engine", default="local", choices=("local", "ray"), help="where to run heavy work")
    add("--ray-address", help="of the cluster (default: RAY_ADDRESS, or one on this machine)")


def _add_shard(parser: argparse.ArgumentParser) -> None:
    text = "score only part I of N of a bank (default: all of it)"
    parser.add_argument("--shard", type=choices.shard, default=(1, 1), metavar="I/N", help=text)


def _add_photos(parser: argparse.ArgumentParser, name: str) -> None:
    text = "folders, of which all images below them are taken, and files"
    parser.add_argument("photos", type=path, nargs="+", metavar=name, help=text)


def _add_score(commands) -> None:
    parser = _command(commands, "score", "score new images with a saved detector")
    parser.add_argument("model", type=path, metavar="MODEL", help="file of rank --save")
    _add_photos(parser, "NEW_PHOTOS")
    # Not the default of rank, whose report it would replace.
    parser.add_argument("--out", type=path, default="report-new", help="folder for the report")
    _add_engine(parser)
    _add_shard(parser)


def _add_views(commands) -> None:
    parser = _command(commands, "views", "draw all views of an image")
    parser.add_argument("image", type=path, metavar="IMAGE", help="file")
    parser.add_argument("--operations", default="RA+IA+PR", help="families of operations")
    parser.add_argument(
        "--out", type=path, default="views.png", help="file to draw to: .png, .pdf or .svg"
    )


def _add_quarantine(commands) -> None:
    parser = _command(
        commands, "quarantine", "move the most outlying images aside; deletes nothing"
    )
    parser.add_argument("report", type=path, metavar="REPORT", help="folder of rank or score")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--top", type=int, metavar="N", help="how many to move")
    what.add_argument("--list", type=path, metavar="FILE", help="move those the gallery saved")
    what.add_argument("--undo", action="store_true", help="move all of them back")


def _command(commands, name: str, text: str) -> argparse.ArgumentParser:
    return commands.add_parser(name, help=text, description=text, formatter_class=HelpFormatter)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Says the default of each option that has one, unless its text does."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        says_it = action.default in (None, False) or "default" in (action.help or "")
        return action.help if says_it else super()._get_help_string(action)


def path(text: str) -> Path:
    """For argparse: a file or folder; "~" is the user's home."""
    if not text:  # as a shell variable that is not set gives; Path would take it for "."
        raise argparse.ArgumentTypeError("empty path")
    named = Path(text)
    # The shell leaves "~" as it is in --out=~/report.
    with contextlib.suppress(RuntimeError):  # no such home
        return named if os.path.lexists(named) else named.expanduser()
    return named


def _contamination(text: str) -> float | str:
    try:
        return text if text == "auto" else float(text)
    except ValueError:
        message = f"invalid outlier share {text!r}: use e.g. 0.1 or auto"
        raise argparse.ArgumentTypeError(message) from None


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"invalid time {text!r}: use e.g. 90s, 5m or 1h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code."""
    args = parse_args(arguments)
    from e3jax.cli import console

    screen = console.start()
    try:
        with console.logged(screen):
            command = importlib.import_module(f"e3jax.cli.{args.command}")
            exits.started()
            return command.run(args, screen)
    except KeyboardInterrupt:
        screen.print(
            "Interrupted. `e3jax quarantine REPORT --undo` restores any files already moved."
        )
        return exits.STOPPED
    except Exception as error:
        sentence, code = _explained(error)
        if code == exits.PARTLY:
            console.list_files(screen, "moved", error.moved)
        screen.print(f"error: {sentence}", style="red")
        return code


def _explained(error: Exception) -> tuple[str, int]:
    """An error in one sentence, and the exit code."""
    from e3jax import quarantine

    if isinstance(error, quarantine.PartlyMoved):
        return str(error), exits.PARTLY
    if isinstance(error, OSError) or (isinstance(error, ValueError) and _is_of_input(error)):
        return str(error), exits.BAD_INPUT
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        text = "not enough memory: give fewer images, or a smaller --image-size or --network"
        return text, exits.BAD_INPUT
    return exits.crash(error)


def _is_of_input(error: ValueError) -> bool:
    """Whether e3jax raised it, not a library that was called in a way that it does not take."""
    *_, last = traceback.walk_tb(error.__traceback__)
    return Path(__file__).parents[1] in Path(last[0].f_code.co_filename).parents
