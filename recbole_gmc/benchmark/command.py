"""The benchmark command: cells that are not done are run, then all are checked and compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from recbole_gmc import logs
from recbole_gmc.benchmark import board, compare, scenarios, tables
from recbole_gmc.benchmark import run as cells
from recbole_gmc.benchmark.board import Board
from recbole_gmc.benchmark.plan import Benchmark, parse
from recbole_gmc.errors import RunError
from recbole_gmc.files import new_file

HELP = """\
usage: recbole-gmc benchmark --models=GMC,SASRec,... --dataset=<name> [--seeds=3] [--config_files="a.yaml"]
                             [--<key>=<value> ...]
       recbole-gmc benchmark --compare=A,B [--on=valid|test] [--unseen=<data_path>]
                             [--output=<folder> | --dataset=<name>]

Runs every model with every seed on the same domains, each as a process of its own, and prints one table. Called again
with the same --output it goes on: what is done is not done again, an interrupted cell starts from its last checkpoint
or its beginning, a failed one is tried again. The tables are written to --output, too: table.txt, .md, .tex and .csv.

  --models          models of this package and of RecBole, joined by commas; `recbole-gmc models` lists them
  --dataset         as for a run; --domains=A,B unites domains
  --ablations       all, or names joined by commas: variants of GMC, each with its change against GMC (the paper's
                    Table 4): without_shared_codebook, without_unified, without_domain_loss, without_lora,
                    full_finetuning; their settings are properties/ablation/<name>.yaml
  --ladder          the same for GMCPlus: the steps that lead to it, each with all before it (codes, tree_softmax,
                    text_and_vectors, dense_head, light_codes, repeat_bias), and what may be added (prefix_loss,
                    cooccurrence, rqvae); their settings are properties/ladder/<name>.yaml
  --domain_sets     "A;A,B;A,B,C": runs each set of domains, and shows the quality in each domain over the interactions
                    trained on (the paper's 5.4.3). Without a value: the first domain, the first two, and so on. Models
                    that are run once a domain are trained once in each, unless there are budget_minutes
  --seeds           3: `seed`, seed+1, seed+2; 7,9: these two (default 1)
  --output          the folder of the cells (default runs/benchmark-<dataset>); each domain set has one of its own there
  --config_files    settings for all models. A top-level key that is a model's name holds settings for it alone, over
                    the common ones:  GMC: {config_files: [properties/preset/cpu.yaml], epochs: 40}
  --budget_minutes  CPU minutes of a cell's process after which no further epoch starts. Its best weights are tested;
                    it is marked budget-limited and left out of the marks and of significance (default none)
  --dry-run         lists the cells and what is known of them
  --<key>=<value>   any setting, for all models
  --compare         runs nothing: holds A against B (and others) by a paired bootstrap over users and seeds, on
                    validation unless --on=test. A and B are run folders, or such names without their -<seed>, in
                    --output (of --dataset: runs/benchmark-<dataset>), else as paths
  --unseen          with --compare: items that a user's history holds, by the raw files of this folder, are left out of
                    all lists first, as if every model knew that they are no answer

The tables are refused unless all models were asked the same: test targets and candidates are found again in the raw
files by code that no model uses, and held against every list, rank and metric of every cell.
Exit status: 0 done, 1 a cell failed or no table can stand, 2 bad use.
"""

FILES = {
    "table.txt": tables.terminal,
    "table.md": tables.markdown,
    "table.tex": tables.latex,
    "table.csv": tables.as_csv,
}


def run(arguments: Sequence[str]) -> Board | str | None:
    """Runs, checks, prints and writes.

    Returns:
        The board; ``None`` for a dry run and for sets of domains, the text of a comparison that is asked for.

    Raises:
        SettingError: bad flags, a setting that a cell would refuse, or an output folder with cells of other settings
            or data.
        DataError: cells that were not asked the same; no table is written then.
        RunError: a cell is not done.
    """
    flags = {word.partition("=")[0] for word in arguments}
    if "--compare" in flags:
        return compare.run(arguments)
    if scenarios.WHERE in flags:
        return run_sets(arguments)
    benchmark, dry = parse(arguments)
    cells.refuse_bad(benchmark)
    cells.refuse_other(benchmark)
    if dry:
        print(listing(benchmark))
        return None
    cells.run_all(benchmark)
    found = show(benchmark)
    refuse_undone([benchmark])
    return found


def run_sets(arguments: Sequence[str]) -> None:
    """The same for sets of domains: a benchmark each, then one comparison over the sets.

    Raises:
        As ``run``.
    """
    benchmarks, dry = scenarios.parse(arguments)
    for benchmark in benchmarks:
        cells.refuse_bad(benchmark)
        cells.refuse_other(benchmark)
        if dry:
            print(listing(benchmark))
    if dry:
        return
    for number, benchmark in enumerate(benchmarks, 1):
        print(f"Set {number} of {len(benchmarks)}: {', '.join(benchmark.domains)}", flush=True)
        cells.run_all(cells.taking_over(benchmark, benchmarks[: number - 1]))
    done = [one for one in benchmarks if any(cells.status(cell) == cells.DONE for cell in one.cells)]
    if not done:
        what = f"no cell is done{_first_error(benchmarks)}"
        raise RunError(what, str(benchmarks[0].output.parent), "See the .log files there")
    show_sets({benchmark.domains: write(benchmark) for benchmark in done}, done[0].output.parent)
    refuse_undone(benchmarks)


def show_sets(boards: Mapping[scenarios.Domains, Board], folder: Path) -> None:
    """The comparison over sets of domains, on the terminal and as files."""
    from recbole_gmc.benchmark import scenario_page

    found = scenarios.compare(boards)
    drawn = scenarios.tables(found)
    texts = {
        "domain_sets.txt": tables.as_terminal(drawn, [scenarios.LEGEND]),
        "domain_sets.md": tables.as_markdown(drawn, scenarios.LEGEND),
        "domain_sets.tex": tables.as_latex(drawn, [scenarios.LEGEND]),
        "domain_sets.csv": scenarios.as_csv(found),
    }
    for name, text in texts.items():
        with new_file(folder / name) as file:
            file.write(text)
    page = scenario_page.write(found, folder, logs.command())
    print(texts["domain_sets.txt"])
    print(f"\nWritten: {', '.join(texts)}, {page.name} and figures/ in {folder}")


def _first_error(benchmarks: Sequence[Benchmark]) -> str:
    notes = [cells.note_of(cell).get("error") for one in benchmarks for cell in one.cells]
    return next((f": {error}" for error in notes if error), "")


def refuse_undone(benchmarks: Sequence[Benchmark]) -> None:
    """Raises RunError that names the cells that are not done."""
    undone = [cell for one in benchmarks for cell in one.cells if cells.status(cell) != cells.DONE]
    if undone:
        names = [str(cell.folder.relative_to(benchmarks[0].output.parent)) for cell in undone]
        mend = "Their logs stand beside them. The same command tries those again that no other one runs"
        raise RunError(f"{len(undone)} cells are not done: {', '.join(names)}", "benchmark", mend)


def listing(benchmark: Benchmark) -> str:
    """The cells with their state."""
    lines = [f"{len(benchmark.cells)} cells on {', '.join(benchmark.domains)}, in {benchmark.output}"]
    width = max(12, *(len(cell.row) for cell in benchmark.cells))
    for cell in benchmark.cells:
        note, state = cells.note_of(cell), cells.status(cell)
        time = f" in {cells.in_words(note.get('seconds', 0.0))}" if state == cells.DONE else ""
        error = f": {note.get('error')}" if state == cells.FAILED else ""
        lines.append(f"  {cell.row:<{width}} seed {cell.seed}  {state}{time}{error}")
    return "\n".join(lines)


def show(benchmark: Benchmark) -> Board:
    """The tables of what is done, on the terminal and as files."""
    found = write(benchmark)
    print(tables.terminal(found))
    print(f"\nWritten: {', '.join(FILES)} in {benchmark.output}")
    return found


def write(benchmark: Benchmark) -> Board:
    """The tables of what is done as files.

    Raises:
        RunError: nothing is done.
        DataError: a cell that was asked something else.
    """
    if not any(cells.status(cell) == cells.DONE for cell in benchmark.cells):
        raise RunError(f"no cell is done{_first_error([benchmark])}", str(benchmark.output), "See the .log files there")
    for name in FILES:  # what an older call wrote does not stand beside cells that are refused now
        Path(benchmark.output / name).unlink(missing_ok=True)
    found = board.build(benchmark)
    for name, draw in FILES.items():
        with new_file(benchmark.output / name) as file:
            file.write(draw(found))
    return found
