"""Measures large collections: how fast files are decoded, and what ranking a bank takes.

`decode` reads pictures of three kinds in one process, in turns with Pillow's own loop. `rank` makes
banks of digits of MNIST, each with noise of its own, and ranks them in a process of its own.
Memory is the most that the process had for itself; pages of mapped files come on top and leave
again when others need the space. Rows are added to a table.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import command
import numpy as np
import pandas as pd
from paper import tables
from PIL import Image
from sweep import flags, store
from sweep.provenance import provenance

from e3jax import E3Outlier, datasets
from e3jax.cli.main import path
from e3jax.collection import Reader, bank, reading
from e3jax.devices import runtime
from e3jax.report import gallery, writing


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add_command = parser.add_subparsers(required=True).add_parser
    decode = add_command(
        "decode", help="images per second and core", description=decode_all.__doc__
    )
    decode.add_argument("--rounds", type=flags.positive, default=5, help="turns")
    text = "large ones; 10 and 50 times as many small ones"
    decode.add_argument("--files", type=flags.positive, default=60, help=text)
    decode.add_argument("--out", type=path, default="runs/decoding.csv", help="the rows")
    decode.set_defaults(do=decode_all)
    rank = add_command("rank", help="time and memory of stages", description=rank_all.__doc__)
    rank.add_argument("--images", type=flags.positive, nargs="+", default=[10**4, 10**5, 10**6])
    rank.add_argument("--steps", type=flags.positive, help="of the training (default: auto)")
    rank.add_argument("--score-operations", type=flags.positive, help="(default: auto)")
    rank.add_argument("--out", type=path, default="runs/large.csv", help="the rows")
    rank.set_defaults(do=rank_all)
    rank_one = add_command("rank-one", help="what rank starts for each size")
    rank_one.add_argument("how", type=json.loads)
    rank_one.set_defaults(do=lambda args: print(json.dumps(measure_bank(**args.how))))
    args = parser.parse_args()
    return command.run(lambda: args.do(args), "Finished rows are kept.")


def decode_all(args: argparse.Namespace) -> None:
    """Photos of 12 megapixels as JPEG, and pictures of 256 and 32 pixels a side as PNG."""
    random, rows = np.random.default_rng(0), []
    with tempfile.TemporaryDirectory() as folder:
        for kind, size, files in (
            ("jpg", (4000, 3000), args.files),
            ("png", (256, 256), 10 * args.files),
            ("png", (32, 32), 50 * args.files),
        ):
            paths = [Path(folder, f"{i}.{kind}") for i in range(files)]
            for path in paths:
                small = random.integers(0, 256, (24, 32, 3), np.uint8)
                Image.fromarray(small).resize(size).save(path, quality=90)
            seconds = {name: [] for name in LOOPS}
            for _ in command.progress(range(args.rounds + 1), kind):
                for name, loop in LOOPS.items():
                    began = time.process_time()
                    loop(paths)
                    seconds[name].append(time.process_time() - began)
            of = pd.DataFrame(seconds)[1:]
            for name in LOOPS:
                rate = files / of[name].median()
                ratio = (of["Pillow, draft"] / of[name]).median()
                row = {"files": f"{size[0]} x {size[1]} {kind}", "program": name}
                rows.append(
                    row | {"images_per_second_and_core": rate, "ratio": ratio} | provenance()
                )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    store.append_rows(args.out, rows[0], rows)
    lines = []
    for row in rows:
        files, program, rate, ratio, *_ = row.values()
        lines.append([files, program, f"{rate:.0f}", f"{ratio:.2f}"])
    print(tables.table(list(rows[0])[:4], lines))


def _pillow(paths: list[Path], draft: bool) -> None:
    for file in paths:
        with Image.open(file) as picture:
            if draft:
                picture.draft("RGB", (64, 64))
            picture.convert("RGB").resize((32, 32))


def _ours(paths: list[Path], thumbnails: int) -> None:
    reading.read_each(paths, Reader(), thumbnails=thumbnails, threads=1)


LOOPS = {
    "Pillow": lambda paths: _pillow(paths, False),
    "Pillow, draft": lambda paths: _pillow(paths, True),
    "e3jax": lambda paths: _ours(paths, 0),
    "e3jax, with thumbnails": lambda paths: _ours(paths, 96),
}


def rank_all(args: argparse.Namespace) -> None:
    """Adds a row for each number of images."""
    how = {"steps": args.steps or "auto", "score_operations": args.score_operations or "auto"}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for images in args.images:
        line = json.dumps({"images": images} | how)
        began = [sys.executable, __file__, "rank-one", line]
        done = subprocess.run(began, stdout=subprocess.PIPE, text=True, check=True)
        row = json.loads(done.stdout.splitlines()[-1]) | provenance()
        store.append_rows(args.out, row, [row])
        command.say(", ".join(f"{name} {value}" for name, value in list(row.items())[:-2]))


def measure_bank(images: int, steps: int | str, score_operations: int | str) -> dict:
    """Seconds of each stage, and the most memory in bytes, of ranking a bank of so many digits."""
    runtime.prepare()
    digits = datasets.load("mnist", source="embedded").images
    random, began, most = np.random.default_rng(0), {}, [0, True]

    def noisy(size: int) -> np.ndarray:
        some = digits[random.integers(0, len(digits), size)]
        return np.uint8(np.clip(some + random.normal(0, 8, some.shape), 0, 255))

    def watch() -> None:
        while most[1]:
            lines = Path("/proc/self/status").read_text().splitlines()
            found = next(line for line in lines if line.startswith("RssAnon"))
            most[0] = max(most[0], 1024 * int(found.split()[1]))
            time.sleep(0.2)

    def on_progress(stage: str, done: int, total: int) -> None:
        began.setdefault(stage, time.monotonic())

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        began["bank"] = time.monotonic()
        blocks = (min(4096, images - start) for start in range(0, images, 4096))
        pictures = bank.write_arrays(folder / "bank", map(noisy, blocks)).images
        thread = threading.Thread(target=watch)
        thread.start()
        how = {"random_state": 0, "steps": steps, "score_operations": score_operations}
        detector = E3Outlier(**how, on_progress=on_progress)
        began["opening"] = time.monotonic()
        detector.fit_in(folder / "parts", folder / "bank")
        began["report"] = time.monotonic()
        writing.write_tables(folder, detector.ranking_)
        gallery.write_gallery(folder / "gallery.html", detector.ranking_, pictures)
        began["end"] = time.monotonic()
        most[1] = False
        thread.join()
    began.pop("describing", None)
    times = sorted(began.items(), key=lambda item: item[1])
    seconds = {
        f"{name}_seconds": round(after - at, 2)
        for (name, at), (_, after) in zip(times, times[1:], strict=False)
    }
    about = {"images": images, "steps": detector.health_.steps}
    about |= {"score_operations": detector.view_entropies_.shape[1], "memory": most[0]}
    stages = dict.fromkeys(
        f"{name}_seconds"
        for name in ("bank", "opening", "training", "sampling", "scoring", "report")
    )
    return about | stages | seconds | {"cores": runtime.cores()}


if __name__ == "__main__":
    sys.exit(main())
