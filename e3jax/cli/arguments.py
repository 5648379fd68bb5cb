"""The command line: finds the images of a folder that do not belong.

Exit codes: 0 done; 1 done, but the scores are likely to mean little (a warning says why), or the
doctor found something wrong; 2 bad input or arguments, nothing was changed; 3 quarantine moved some
files, which are listed, and not the others (--undo moves back what it had moved aside); 4 a fault
of e3jax, whose traceback is in a file that is named; 130 interrupted by Ctrl-C (--undo likewise).
"""

import argparse
import contextlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from e3jax import choices
from e3jax.version import VERSION


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command and its arguments; those that cannot be end the program with code 2."""
    parser = argparse.ArgumentParser(
        prog="e3jax",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"e3jax {VERSION}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_rank(commands)
    _add_bank(commands)
    _add_score(commands)
    _add_views(commands)
    _add_quarantine(commands)
    _add_doctor(commands)
    args = parser.parse_args(arguments)
    if getattr(args, "ray_address", None) and args.engine != "ray":
        parser.error("--ray-address needs --engine ray")
    return args


def _add_rank(commands) -> None:
    parser = _command(commands, "rank", "learn a folder of images and rank its images")
    add = parser.add_argument
    _add_photos(parser, "PHOTOS")
    add("--out", type=path, default="report", help="folder for the report")
    add(
        "--contamination",
        type=_contamination,
        default="auto",
        help="share of outliers, e.g. 0.1 (auto: those far from the rest)",
    )
    add("--save", type=path, metavar="MODEL", help="save the trained detector to this file")
    text = "seed of all randomness"
    add("--seed", type=int, default=0, dest="random_state", metavar="SEED", help=text)
    add("--time-budget", type=_seconds, metavar="TIME", help="approximate, e.g. 90s, 5m or 1h")
    text = "length of the training (default: depends on collection size)"
    add("--steps", type=int, default=argparse.SUPPRESS, help=text)
    add(
        "--evidence",
        default="all",
        choices=choices.EVIDENCE,
        help="network: only the paper's method",
    )
    _add_features(parser)
    text = "decisions that the gallery saved, to rank once more"
    add("--decisions", type=path, metavar="FILE", help=text)
    add("--rule", default="ne", help="how the network scores a view: ne, pl or mp")
    add("--network", default="auto", help="e.g. wrn-10-4 (auto: by the hardware)")
    add("--operations", default="RA+IA+PR", help="families of operations, e.g. RA or RA+IA")
    text = "number of operations used for scoring (default: depends on collection size)"
    add("--score-operations", type=int, default=argparse.SUPPRESS, metavar="N", help=text)
    _add_shape(parser)
    _add_numbers(parser, "auto")
    _add_engine(parser)
    _add_shard(parser)


def _add_bank(commands) -> None:
    text = "read folders of images once, or join banks, into a bank that rank and score take"
    parser = _command(commands, "bank", text)
    _add_photos(parser, "PHOTOS")
    parser.add_argument("--out", type=path, default="bank", help="folder for the bank")
    _add_shape(parser)
    _add_engine(parser)


def _add_features(parser: argparse.ArgumentParser) -> None:
    text = "vectors of the images (.npy, .npz or .parquet) or a model of yours that makes them "
    text += "(.onnx), as further evidence"
    parser.add_argument("--features", type=path, metavar="FILE", help=text)


def _add_shape(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--image-size", type=int, default=32, help="side to which images are resized, even")
    add("--resize", default="squash", choices=choices.FITS, help="how images become square")


def _add_numbers(parser: argparse.ArgumentParser, precision: str | None) -> None:
    add = parser.add_argument
    text = "of the network's products; auto: float32 on CPUs, tensorfloat32 on GPUs, bfloat16 on "
    text += "TPUs" if precision else "TPUs (default: what the detector was given)"
    add("--precision", default=precision, choices=choices.PRECISIONS, help=text)
    add_deterministic(parser)


def add_deterministic(parser: argparse.ArgumentParser) -> None:
    """Adds the flag of :func:`e3jax.devices.make_deterministic`."""
    text = "same seed, same numbers on a GPU, too, which costs speed; on a CPU they always are"
    parser.add_argument("--deterministic", action="store_true", help=text)


def _add_engine(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--engine", default="local", choices=("local", "ray"), help="where to run heavy work")
    add("--ray-address", help="of the cluster (default: RAY_ADDRESS, or one on this machine)")


def _add_shard(parser: argparse.ArgumentParser) -> None:
    text = "score only part I of N of a bank (default: all of it)"
    parser.add_argument("--shard", type=shard, default=(1, 1), metavar="I/N", help=text)


def _add_photos(parser: argparse.ArgumentParser, name: str) -> None:
    text = "folders, including their subfolders, and files"
    parser.add_argument("paths", type=path, nargs="+", metavar=name, help=text)


def _add_score(commands) -> None:
    parser = _command(commands, "score", "score new images with a saved detector")
    parser.add_argument("model", type=path, metavar="MODEL", help="file of rank --save")
    _add_photos(parser, "NEW_PHOTOS")
    # Not the default of rank, whose report it would replace.
    parser.add_argument("--out", type=path, default="report-new", help="folder for the report")
    _add_features(parser)
    _add_numbers(parser, None)
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
    what.add_argument(
        "--top", type=int, default=argparse.SUPPRESS, metavar="N", help="how many to move"
    )
    text = "move the files of a selection or of decisions that the gallery saved"
    what.add_argument("--list", type=path, dest="listing", metavar="FILE", help=text)
    what.add_argument("--undo", action="store_true", help="move all of them back")


def _add_doctor(commands) -> None:
    text = "examine whether this machine computes what it should, and how fast; needs no data"
    parser = _command(commands, "doctor", text)
    text = "print everything as JSON"
    parser.add_argument("--json", action="store_true", dest="as_json", help=text)


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


def shard(text: str) -> tuple[int, int]:
    """For argparse: "1/3" as (1, 3), the first of three parts of the work."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"invalid shard {text!r}: use e.g. 1/3, 2/3 or 3/3")
    return int(match[1]), int(match[2])


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
