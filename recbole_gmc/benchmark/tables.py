"""A board as text for the terminal, markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from recbole_gmc.benchmark.board import ALPHA, Board, Row

BEST, SECOND = "best", "second"
COSTS = ("seeds", "parameters", "epochs", "patience", "train s", "test s", "history", "text", "notes")


@dataclass(frozen=True)
class Field:
    """One cell of a table; ``mark`` is best, second or nothing, ``differs`` that it is significant."""

    text: str
    mark: str = ""
    differs: bool = False


@dataclass(frozen=True)
class Table:
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Field, ...], ...]


def tables(board: Board) -> list[Table]:
    """One a domain, the user-weighted average, and what the models took."""
    found = []
    for part in board.parts:
        rows = [(Field(_name(board, row)), *_scores(board, row, part)) for row in board.rows]
        if any(row.model != board.reference and not row.base for row in board.rows):
            rows.append((Field(f"{board.reference}'s gain on the strongest baseline"), *_gains(board, part)))
        title = f"{part}, {board.users[part]:,} users" + (", user-weighted" if part == "average" else "")
        found.append(Table(title, ("model", *map(short, board.metrics)), tuple(rows)))
    found.append(Table("What the models took", ("model", *COSTS), tuple(_costs(row) for row in board.rows)))
    return found


def _labels(board: Board) -> list[str]:
    """What settings other than the published ones are called, in the order of the rows."""
    return list(dict.fromkeys(label for row in board.rows if (label := row.facts.get("label"))))


def _name(board: Board, row: Row) -> str:
    label = row.facts.get("label")
    mark = f" [{_labels(board).index(label) + 1}]" if label else ""
    partly = f" ({row.facts['seeds']} seeds)" if row.seeds and not row.whole else ""
    return row.model + mark + partly + (" (budget-limited)" if row.limited else "")


def short(metric: str) -> str:
    return metric.replace("recall", "R").replace("ndcg", "N")


def _scores(board: Board, row: Row, part: str) -> list[Field]:
    fields = []
    for metric in board.metrics:
        if not row.seeds:
            fields.append(Field("failed" if "FAILED" in row.facts["notes"] else "-"))
            continue
        spread = row.std(part, metric)
        text = f"{row.mean(part, metric):.4f}" + ("" if math.isnan(spread) else f" ± {spread:.4f}")
        if (change := board.change(row, part, metric)) is not None:
            text += f" ({100 * change:+.1f}%)"
        order = board.order(part, metric)
        mark = {model: name for model, name in zip(order, (BEST, SECOND), strict=False)}.get(row.model, "")
        differs = board.adjusted.get((part, metric, row.model), 1.0) < ALPHA
        fields.append(Field(text, mark, differs))
    return fields


def _gains(board: Board, part: str) -> list[Field]:
    fields = []
    for metric in board.metrics:
        found = board.gain(part, metric)
        differs = found is not None and board.adjusted[part, metric, found[0]] < ALPHA
        fields.append(Field("-" if found is None else f"{100 * found[1]:+.1f}% ({found[0]})", "", differs))
    return fields


def _costs(row: Row) -> tuple[Field, ...]:
    facts = row.facts
    shown = {"parameters": ",", "train s": ".0f", "test s": ".1f"}
    values = {**facts, "train s": facts.get("train"), "test s": facts.get("test")}
    texts = [format(values[name], shown.get(name, "")) if values.get(name) is not None else "-" for name in COSTS]
    return (Field(row.model), *map(Field, texts))


def legend(board: Board) -> list[str]:
    """What the marks mean and what was the same for all."""
    bases = dict.fromkeys(row.base for row in board.rows if row.base)
    variants = [
        f"In brackets: the relative change of a variant against {' or '.join(bases)}, with which its significance is "
        f"tested, too, apart from the models'. Variants have no *, no + and no part in the gain."
    ]
    return [
        f"Means over seeds, ± the standard deviation over seeds. Significance: paired t-test over users between "
        f"{board.reference} and each other model, on means over seeds, adjusted by Holm over all metrics and models of "
        f"a table, p < {ALPHA}. Budget-limited models, and those that lack a seed, have no marks and no tests.",
        f"The same for all models, checked against the raw files: test targets {board.hashes['targets'][:12]}, "
        f"candidates {board.hashes['candidates'][:12]}. Training seconds are wall-clock, all stages; parameters are "
        f"all that serve all domains.",
        *(f"[{number}] {label}." for number, label in enumerate(_labels(board), 1)),
        *(variants if bases else ()),
    ]


def _held_against(board: Board) -> str:
    return board.reference + (" or, for a variant, from its model" if any(row.base for row in board.rows) else "")


def terminal(board: Board) -> str:
    """Plain text: * best, + second, ! significantly different from the reference."""
    marks_mean = f"* best, + second, ! significantly different from {_held_against(board)}."
    return as_terminal(tables(board), [marks_mean, *legend(board)])


def as_terminal(found: Sequence[Table], notes: Sequence[str]) -> str:
    """Tables as plain text, and what is to be said of them."""
    lines: list[str] = []
    for table in found:
        marks = {BEST: "*", SECOND: "+", "": " "}
        rows = [[f.text + (marks[f.mark] + ("!" if f.differs else " ")).rstrip() for f in row] for row in table.rows]
        widths = [max(len(row[i]) for row in [list(table.header), *rows]) for i in range(len(table.header))]
        lines += ["", table.title]
        lines += ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
                  for row in [list(table.header), ["-" * w for w in widths], *rows]]  # fmt: skip
    return "\n".join([*lines, "", *notes]).lstrip("\n")


def markdown(board: Board) -> str:
    """Best bold, second underlined, † significant."""
    meaning = f"Bold: best. Underlined: second. †: significantly different from {_held_against(board)}. "
    return as_markdown(tables(board), meaning + " ".join(legend(board)))


def as_markdown(found: Sequence[Table], notes: str) -> str:
    """Tables as markdown, and what is to be said of them."""
    lines: list[str] = []
    wraps = {BEST: "**{}**", SECOND: "<u>{}</u>", "": "{}"}
    for table in found:
        lines += [f"**{table.title}**", "", "| " + " | ".join(table.header) + " |", "|---" * len(table.header) + "|"]
        for row in table.rows:
            cells = [wraps[f.mark].format(f.text.replace("|", "\\|")) + ("†" if f.differs else "") for f in row]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join([*lines, notes]) + "\n"


_ESCAPES = {"\\": r"\textbackslash{}", **{c: "\\" + c for c in "&%$#_{}"}, "±": r"$\pm$"}
_ESCAPES |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}"}


def latex(board: Board) -> str:
    """One ``tabular`` a table, for ``booktabs``."""
    return as_latex(tables(board), legend(board))


def as_latex(found: Sequence[Table], notes: Sequence[str]) -> str:
    """Tables in LaTeX, and comments with what is to be said of them."""
    wraps = {BEST: r"\textbf{{{}}}", SECOND: r"\underline{{{}}}", "": "{}"}
    lines = ["% needs \\usepackage{booktabs}"]
    for table in found:
        lines += [f"% {table.title}", rf"\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}", r"\toprule"]
        lines += [" & ".join(map(_escaped, table.header)) + r" \\", r"\midrule"]
        for row in table.rows:
            cells = [wraps[f.mark].format(_escaped(f.text)) + (r"$^\dagger$" if f.differs else "") for f in row]
            lines.append(" & ".join(cells) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}", ""]
    return "\n".join([*lines, *(f"% {line}" for line in notes)]) + "\n"


def _escaped(text: str) -> str:
    return "".join(_ESCAPES.get(c, c) for c in text)


def as_csv(board: Board) -> str:
    """One line a model, part and metric, unrounded; ``p`` against the reference is Holm-adjusted."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    facts = ("parameters", "epochs", "patience", "train", "test", "history", "text", "notes")
    names = ["model", "part", "metric", "mean", "std", "seeds", "values", "place", "p", "change", "budget_limited"]
    writer.writerow([*names, *(f"{name}_seconds" if name in ("train", "test") else name for name in facts)])
    for row in board.rows:
        for part in board.parts:
            for metric in board.metrics:
                line: list = [row.model, part, metric, "", "", len(row.seeds), "", "", "", "", row.limited]
                if row.seeds:
                    spread, order = row.std(part, metric), board.order(part, metric)
                    line[3:5] = row.mean(part, metric), "" if math.isnan(spread) else spread
                    line[6] = " ".join(map(str, row.scores[part][metric]))
                    line[7] = order.index(row.model) + 1 if row.model in order else ""
                    line[8] = board.adjusted.get((part, metric, row.model), "")
                    change = board.change(row, part, metric)
                    line[9] = "" if change is None else change
                writer.writerow([*line, *(row.facts.get(name, "") for name in facts)])
    return file.getvalue()
