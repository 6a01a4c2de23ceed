"""Write what benchmarks/elastic.csv says: the tables of docs/budgets.md and README.md, and the figure (extra `plot`).

python benchmarks/elastic_page.py
"""

from __future__ import annotations

import pathlib
import statistics
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))  # for the other files of this folder

from benchmarks.elastic import CSV, RULES, SHARES, SPEED, VARIANTS  # noqa: E402
from benchmarks.results import read, replace, svg_pyplot  # noqa: E402

ROOT = CSV.parent.parent
PAGES, FIGURE = (ROOT / "docs/budgets.md", ROOT / "README.md"), ROOT / "docs/figures/budgets.svg"
BEGIN = "<!-- budgets: written by benchmarks/elastic_page.py -->\n"
RULES_BEGIN = "<!-- rules: written by benchmarks/elastic_page.py -->\n"
SPEED_BEGIN = "<!-- speed: written by benchmarks/elastic_page.py -->\n"


def scores(rows: list[dict], variant: str, budget: str, column: str = "clips") -> dict[str, float]:
    """Return test top-1 in percent by seed."""
    found = [row for row in rows if (row["variant"], row["budget"]) == (variant, budget)]
    return {row["seed"]: 100 * float(row[f"{column}_test"]) for row in found if row[f"{column}_test"]}


NOT_MEASURED = ["Not measured yet."]


def mean_and_range(values: dict[str, float]) -> str:
    """Return the mean, and the least and greatest value if there are several."""
    if not values:
        return "-"
    spread = f" ({min(values.values()):.1f} to {max(values.values()):.1f})" if len(values) > 1 else ""
    return f"{statistics.mean(values.values()):.1f}{spread}"


def difference(one: dict[str, float], other: dict[str, float]) -> str:
    """Return the mean difference of the seeds that both have, in points."""
    seeds = one.keys() & other.keys()
    return f"{statistics.mean(one[seed] - other[seed] for seed in seeds):+.1f}" if seeds else "-"


def budget_table(rows: list[dict]) -> list[str]:
    """Compare the elastic model with those for each budget alone, tokens chosen evenly."""
    if not rows:
        return NOT_MEASURED
    lines = [
        "| tokens | GFLOPs | input | clips: elastic | alone | difference | images: elastic | alone | difference |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for share in SHARES:
        budget, cells = f"{share}%:even", []
        for column in ("clips", "images"):
            elastic, alone = (scores(rows, each, budget, column) for each in ("elastic", f"alone_{share}"))
            cells += [mean_and_range(elastic), mean_and_range(alone), difference(elastic, alone)]
        costs = next((row for row in rows if row["budget"] == budget), None)
        if costs:
            size = f"{int(costs['clip_bytes']) / 1e3:.1f} kB"
            figures = [f"{share} % ({costs['tokens']})", f"{float(costs['clip_gflop']):.3f}", size]
            lines.append(f"| {' | '.join(figures + cells)} |")
    seeds = {variant: len({row["seed"] for row in rows if row["variant"] == variant}) for variant in VARIANTS}
    trained = {variant: count for variant, count in seeds.items() if count}
    counts = ", ".join(f"{count} of `{variant}`" for variant, count in trained.items())
    if len(set(seeds.values())) == 1:
        counts = f"{seeds['elastic']} of each model"
    by_rule = {rule: scores(rows, "elastic", f"{SHARES[0]}%:{rule}") for rule in ("motion", "even", "random")}
    found = ", ".join(f"{mean_and_range(values)} with `{rule}`" for rule, values in by_rule.items() if values)
    text = f"Seeds: {counts}."
    if found:
        text += f" The elastic model on clips, with {SHARES[0]} % of the tokens: {found}."
    return [*lines, "", text]


def rule_table(rows: list[dict]) -> list[str]:
    """Compare the rules with the elastic model."""
    if not rows:
        return NOT_MEASURED
    lines = [f"| tokens | {' | '.join(RULES)} |", "|---" * (1 + len(RULES)) + "|"]
    for share in SHARES[:-1]:
        cells = [mean_and_range(scores(rows, "elastic", f"{share}%:{rule}")) for rule in RULES]
        lines.append(f"| {share} % | {' | '.join(cells)} |")
    return lines


def speed_table(rows: list[dict]) -> list[str]:
    """Show what a budget saves on the host and in the forward pass."""
    if not rows:
        return NOT_MEASURED
    names = ("input_per_s", "forward_per_s")
    lines = ["| | budget | tokens | GFLOPs | kB | input, per s | forward, per s |", "|---|---|---|---|---|---|---|"]
    whole = {row["kind"]: row for row in rows if row["budget"].startswith("100%")}
    for row in rows:
        rates = [(float(row[name]), float(whole[row["kind"]][name])) for name in names]
        ratios = [f"{rate:.0f} ({rate / of_all:.1f}x)" for rate, of_all in rates]
        cells = [row["kind"], row["budget"], row["tokens"], row["gflop"], f"{int(row['bytes']) / 1e3:.1f}", *ratios]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def plot(rows: list[dict]) -> None:
    """Plot the test top-1 of clips and images by the share of the tokens; images have no other rules."""
    pyplot = svg_pyplot()
    figure, panels = pyplot.subplots(1, 2, figsize=(7.5, 3.6), sharex=True)
    colours = dict(zip(RULES, ("#2a7fb8", "#8f6b1f", "#d9622b", "#4c9a3f")))
    for axes, column, title in zip(panels, ("clips", "images"), ("clips, 80 classes", "images, 10 digits")):
        for rule in RULES if column == "clips" else ("even", "random"):
            found = [scores(rows, "elastic", f"{s}%:{rule if s < 100 else 'even'}", column) for s in SHARES]
            points = [(s, statistics.mean(each.values())) for s, each in zip(SHARES, found) if each]
            axes.plot(*zip(*points), "o-", color=colours[rule], label=f"elastic, {rule}", markersize=4)
        alone = [(s, scores(rows, f"alone_{s}", f"{s}%:even", column)) for s in SHARES]
        if points := [(s, statistics.mean(each.values())) for s, each in alone if each]:
            axes.plot(
                *zip(*points), "s", color="#1b222c", markersize=5, fillstyle="none", label="a model for each, even"
            )
        axes.set(title=title, xlabel="tokens, %", xticks=SHARES)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("test top-1, %")
    figure.legend(*panels[0].get_legend_handles_labels(), fontsize=8, loc="lower center", ncols=3, frameon=False)
    figure.tight_layout(rect=(0, 0.14, 1, 1))
    figure.savefig(FIGURE, metadata={"Date": None})
    pyplot.close(figure)


def page(text: str, rows: list[dict], speeds: list[dict]) -> str:
    """Replace those tables that a page has."""
    for begin, lines in (
        (BEGIN, budget_table(rows)),
        (RULES_BEGIN, rule_table(rows)),
        (SPEED_BEGIN, speed_table(speeds)),
    ):
        text = replace(text, begin, lines) if begin in text else text
    return text


def main() -> None:
    rows = read(CSV)
    for path in PAGES:
        path.write_text(page(path.read_text(), rows, read(SPEED)))
    if rows:
        plot(rows)


if __name__ == "__main__":
    main()
