"""The process of a :class:`speed.worker.Worker`: one JSON line calls a method, one answers."""

import json
import os
import pkgutil
import sys


def main() -> None:
    # What libraries print must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    backend = pkgutil.resolve_name(sys.argv[1])(**json.loads(sys.argv[2]))
    for line in sys.stdin:
        method, options = json.loads(line)
        print(json.dumps(getattr(backend, method)(**options)), file=answers, flush=True)


if __name__ == "__main__":
    main()
