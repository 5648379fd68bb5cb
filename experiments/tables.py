"""Prints the tables of results.csv files, draws their figures, or writes docs/results.md."""

import argparse
import sys
from pathlib import Path

import command
import pandas as pd
from paper import appendix, figures, real, tables, versions
from sweep import rows, store

from e3jax.cli.arguments import path
from e3jax.work import files

ROOT = Path(__file__).parents[1]
# The tables that the page is made of, besides those of inlier priority.
_READ = """quick quick_embedded ablations full_classes steps refinements operations_fused folders
featured real memory theory""".split()
_MARK = "<!-- Written by experiments/tables.py of e3jax, which writes it anew. -->"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", help="results.csv files, e.g. results/quick.csv")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--summary", action="store_true", help="only means, one line per method")
    what.add_argument("--figures", metavar="FOLDER", type=path, help="draw Figs. 1 b, 5 and 6")
    what.add_argument("--write", metavar="PAGE", type=path, help="write the page of all results/")
    args = parser.parse_args()
    if bool(args.files) == bool(args.write):
        parser.error("give files of results, or --write PAGE, which reads those in results/")
    return command.run(lambda: work(args), "Nothing was written.")


def work(args: argparse.Namespace) -> None:
    if args.write:
        files.check_output(args.write, _MARK)
        files.write_text(args.write, page(ROOT / "results"))
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


def page(results: Path) -> str:
    """The text of docs/results.md: the prose of paper/results.md with tables of the results."""
    names = ("quick", "quick_embedded", "ablations", "refinements", "featured")
    quick, embedded, ablations, refinements, featured = (
        store.read_csv(results / f"{name}.csv") for name in names
    )
    runs = tables.frame([*quick, *ablations])
    parts = {name: figures.factor_table(runs, "quick1", name) for name in figures.FIGURES}
    memory = pd.read_csv(results / "memory.csv").sort_values("images")["peak_resident_bytes"] / 1e9
    recording = pd.read_csv(results / "priority" / "recording.csv").iloc[-1]
    recorded = "every {every} steps {probe_views} views and {probe_images} images"
    fused = pd.read_csv(results / "operations_fused.csv")
    summaries = sorted(results.glob("priority/*-summary.csv"), reverse=True)
    people = appendix.read_folders(results / "real.csv")
    read = [results / f"{name}.csv" for name in _READ] + summaries
    parts |= {
        "full": tables.markdown(store.read_csv(results / "full_classes.csv")),
        "steps": appendix.steps_table(store.read_csv(results / "steps.csv")),
        "refinements": appendix.refinements_table(refinements, quick),
        "refined": appendix.refinement_intervals(refinements, quick),
        "paired": appendix.paired_table(quick),
        "ratios": figures.factor_table(runs, "quick", "fig5-ratios"),
        "benchmark": tables.markdown([*quick, *embedded], summary=True),
        "priority": "\n\n".join(appendix.priority_table(pd.read_csv(path)) for path in summaries),
        "recorded": recorded.format(**recording),
        "overhead": f"{100 * (recording['time_ratio'] - 1):.0f} %",
        "theory": appendix.theory_table(pd.read_csv(results / "theory.csv")),
        "operations": appendix.prediction_table(pd.read_csv(results / "operations.csv")),
        "fused": appendix.fusion_table(fused),
        "fewer": appendix.fusion_table(fused, fewer=True),
        "folders": appendix.folders_table(appendix.read_folders(results / "folders.csv")),
        "featured": tables.markdown(featured, summary=True),
        "real": real.real_table(people),
        "intervals": real.interval_table(people),
        "agreement": real.agreement_table(people),
        "memory": f"{memory.iloc[-1]:.2f} GB",
        "memory_growth": f"{memory.iloc[-1] - memory.iloc[0]:.2f} GB",
        "versions": versions.sentence(map(rows.read, read)),
    }
    text = Path(tables.__file__).with_name("results.md").read_text("utf-8").format(**parts)
    return f"{_MARK}\n\n{text}"


if __name__ == "__main__":
    sys.exit(main())
