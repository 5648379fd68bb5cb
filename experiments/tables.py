"""Prints the tables of results.csv files, draws their figures, or writes the pages of results."""

import argparse
import sys
from pathlib import Path

import command
import pandas as pd
from paper import appendix, figures, headline, real, tables, versions
from sweep import store

from e3jax.cli.arguments import path
from e3jax.work import files

ROOT = Path(__file__).parents[1]
PAGES = Path(tables.__file__).with_name("pages")
MARK = "<!-- Written by experiments/tables.py of e3jax, which writes it anew. -->"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", help="results.csv files, e.g. results/quick.csv")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--summary", action="store_true", help="only means, one line per method")
    what.add_argument("--figures", metavar="FOLDER", type=path, help="draw Figs. 1 b, 5 and 6")
    what.add_argument("--write", metavar="FOLDER", type=path, help="write the pages of results/")
    args = parser.parse_args()
    if bool(args.files) == bool(args.write):
        parser.error("give files of results, or --write FOLDER, which reads those in results/")
    return command.run(lambda: work(args), "Nothing was written.")


def work(args: argparse.Namespace) -> None:
    if args.write:
        texts = pages(ROOT / "results")
        for name in texts:
            files.check_output(args.write / name, MARK)
        for name, text in texts.items():
            (args.write / name).parent.mkdir(parents=True, exist_ok=True)
            files.write_text(args.write / name, text)
        return
    runs = []
    for file in args.files:
        try:
            runs += store.read_csv(file)
        except (KeyError, ValueError) as error:
            raise ValueError(f"{file} is not a results.csv of benchmark.py: {error!r}") from error
    if args.figures:
        print(*figures.draw(args.figures, runs), sep="\n")
    else:
        print(tables.markdown(runs, args.summary))


def pages(results: Path) -> dict[str, str]:
    """The pages of docs/ by their file names: texts of paper/pages/ with tables of the results."""
    parts = _parts(results)
    return {
        str(path.relative_to(PAGES)): f"{MARK}\n\n{path.read_text('utf-8').format(**parts)}"
        for path in sorted(PAGES.rglob("*.md"))
    }


def _parts(results: Path) -> dict[str, str]:
    """What stands in braces in the texts of pages."""
    quick, full, ablations, steps = (
        store.read_csv(results / f"{name}.csv") for name in ("quick", "full", "ablations", "steps")
    )
    tabled = {
        name: pd.read_csv(results / f"{name}.csv")
        for name in ("operations", "operations_fused", "memory", "theory")
    }
    folders, real_folders = (
        appendix.read_folders(results / f"{name}.csv") for name in ("folders", "real")
    )
    summaries = [pd.read_csv(path) for path in sorted(results.glob("priority/*-summary.csv"))]
    recording = pd.read_csv(results / "priority" / "recording.csv").iloc[-1]
    memory = tabled["memory"].sort_values("images")["peak_resident_bytes"] / 1e9
    of_folders, fused = real.means(real_folders), tabled["operations_fused"]
    runs = tables.frame([*quick, *ablations])
    everything = [tables.frame([*quick, *full, *ablations, *steps]), folders, real_folders]
    return {
        "headline": headline.headline_table([*quick, *full], of_folders),
        "seeds": len({row["seed"] for row in quick}),
        "differences": headline.differences_table([*quick, *full]),
        "reproduction": headline.reproduction_table(quick),
        "ingredients": headline.ingredients_table(quick, of_folders),
        "halves": headline.halves_table([*quick, *full]),
        "classes": tables.markdown(quick),
        "full": tables.markdown(full),
        "steps": appendix.steps_table(steps),
        **{name: figures.factor_table(runs, _protocol(name), name) for name in figures.FIGURES},
        "priority": "\n\n".join(map(appendix.priority_table, summaries)),
        "recorded": "every {every} steps {probe_views} views and {probe_images} images".format(
            **recording
        ),
        "overhead": f"{100 * (recording['time_ratio'] - 1):.0f} %",
        "theory": appendix.theory_table(tabled["theory"]),
        "operations": appendix.prediction_table(tabled["operations"]),
        "fused": appendix.fusion_table(fused),
        "fewer": appendix.fusion_table(fused, fewer=True),
        "folders": appendix.folders_table(folders),
        "real": real.real_table(real_folders),
        "intervals": real.interval_table(real_folders),
        "agreement": real.agreement_table(real_folders),
        "memory": f"{memory.iloc[-1]:.2f} GB",
        "memory_growth": f"{memory.iloc[-1] - memory.iloc[0]:.2f} GB",
        "versions": versions.sentence([*everything, *tabled.values(), *summaries]),
    }


def _protocol(figure: str) -> str:
    """What the rows of a figure were made by: some of ``ablations.csv`` are older."""
    return "quick1" if figure in ("fig6b-networks", "fig6d-epochs") else "quick"


if __name__ == "__main__":
    sys.exit(main())
