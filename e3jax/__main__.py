"""``python -m e3jax`` is the command ``e3jax``; Ctrl-C works while imports take their seconds."""

import contextlib
import sys

from e3jax.work import exits


def main() -> int:
    """Runs a command; returns its exit code."""
    exits.hear_interrupts()
    try:
        from e3jax import cli

        return cli.main()
    except KeyboardInterrupt:
        _say("Interrupted.")
        return exits.STOPPED
    except Exception as error:  # of an import, say
        sentence, code = exits.crash(error)
        _say(f"error: {sentence}")
        return code
    finally:
        exits.finished()


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # a full disk
        print(text, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
