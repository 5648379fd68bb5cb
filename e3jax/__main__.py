"""``python -m e3jax`` is the command ``e3jax``; imports take seconds, in which Ctrl-C is heard."""

import sys

from e3jax import exits


def main() -> int:
    """Runs a command; returns its exit code."""
    exits.hear_interrupts()
    try:
        from e3jax import cli

        return cli.main()
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return exits.STOPPED
    except Exception as error:  # of an import, say
        sentence, code = exits.crash(error)
        print(f"error: {sentence}", file=sys.stderr)
        return code


if __name__ == "__main__":
    sys.exit(main())
