"""Write what benchmarks/claims.csv says: the table of docs/reproducing.md and README.md, and the figure (extra `plot`).

python benchmarks/claims_page.py
python benchmarks/claims_page.py --csv runs/claims.csv      # prints the table of your own rows
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import statistics
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))  # for the other files of this folder

from benchmarks.claims import CLAIMS, CSV, DENSE  # noqa: E402
from benchmarks.results import read, replace, svg_pyplot  # noqa: E402

ROOT = CSV.parent.parent
PAGES = (ROOT / "docs/reproducing.md", ROOT / "README.md")
FIGURE = ROOT / "docs/figures/claims.svg"
BEGIN = "<!-- results: written by benchmarks/claims_page.py -->\n"
SEEDS = 3
CLOSE = 2.0  # points; differences below it say nothing, see `compare`
LABELS = {
    "two_stage": "two stages", "video": "clips alone", "images": "images alone", "no_position": "none",
    "no_stride": "without stride", "tubes_1": "1 tube", "tubes_2": "2 tubes", "tubes_3": "3 tubes",
    "no_s2d": "without space-to-depth",
    "tokens_240": "240 tokens", "tokens_304": "304", "tokens_643": "643", "half_clip": "1x1 view of half a clip",
    "views_2x1": "2x1",
    "views_4x1": "4x1", "added_1": "1 added", "added_2": "2 added", "added_3": "3 added", "vit": "image ViT",
    "last_fc": "pooling and head", "last": "last 2 blocks", "gate": "last 2 blocks and gate", "lora": "adapters",
    "full": "all", "joint_twice": "the small model, twice the steps",
    "scratch": "from scratch", "full_equal": "all, equal FLOPs", "scratch_equal": "from scratch, equal FLOPs",
    "dense": "dense tubelets", "vivit": "ViViT", "timesformer": "TimeSformer", "factorised": "factorised encoder",
}  # fmt: skip
# What `joint` is called where it is the reference of a claim.
JOINT = {2: "fixed", 3: "4 tubes", 4: "space-to-depth", 5: "a kernel for each tube", 8: "the small model"}
# Other names of variants in some claims.
IN_CLAIM = {
    (6, "no_s2d"): "176 tokens as trained", (7, "two_stage"): "0 added", (9, "video"): "sparse tubes",
    (9, "joint"): "sparse tubes with images",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Statement:
    """A statement of the paper and the comparisons that it amounts to.

    Attributes:
        claim: a key of `CLAIMS`.
        text, paper: what the paper says, and its figures.
        order: variants of which each is better than the next, several chains of them.
        close: pairs of variants of which the first is about as good as the second.
        column: what is compared, clips or images.
    """

    claim: int
    text: str
    paper: str
    order: tuple[tuple[str, ...], ...] = ()
    close: tuple[tuple[str, str], ...] = ()
    column: str = "clips"

    @property
    def variants(self) -> tuple[str, ...]:
        """The variants of all comparisons, each once."""
        return tuple(dict.fromkeys(variant for group in (*self.order, *self.close) for variant in group))


STATEMENTS = (
    Statement(1, "Joint training is better than two stages, and these are better than clips alone (Table 5)",
              "91.5, 90.4, 85.6 %", (("joint", "two_stage", "video"),)),
    Statement(1, "Training on clips as well helps with images (section 4.1)", "81.4, 78.1 %", (("joint", "images"),),
              column="images"),
    Statement(2, "Fixed positions are better than learned ones, and these better than none (Table 7a)",
              "84.5, 79.2, 78.6 %", (("joint", "learned", "no_position"),)),
    Statement(2, "Fixed positions should take the strides into account (Table 7a)", "84.5, 77.7 %",
              (("joint", "no_stride"),)),
    Statement(3, "More tubes are better (Table 7b)", "8, 4, 2, 1 tubes: 85.4, 83.4, 81.5, 78.4 %",
              (("joint", "tubes_3", "tubes_2", "tubes_1"),)),
    Statement(4, "Space-to-depth helps (Table 7c)", "84.5 to 85.4, without 83.4 %", (("joint", "no_s2d"),)),
    Statement(5, "One interpolated kernel is nearly as good as a kernel for each tube (Tables 7c and 7e)",
              "83.8; 84.5 %, without space-to-depth 83.4 %",
              close=(("interpolated", "joint"), ("interpolated", "no_s2d"))),
    Statement(6, "At evaluation, somewhat more tokens help slightly, many more do not (Table 7d)",
              "1.4, 1.8, 2.7 times as many: +0.4, +0.1, -1.0 points",
              (("tokens_240", "no_s2d"), ("tokens_304", "no_s2d"), ("no_s2d", "tokens_643"))),
    Statement(6, "More views are better (Table 7f)", "1x1, 4x1, 4x3: 82.8, 83.3, 84.5 %",
              (("views_4x1", "views_2x1", "half_clip"),)),
    Statement(7, "Each new attention layer in a pretrained ViT hurts (Table 8)", "0, 1, 2, 4: 84.2, 80.2, 78.9, 75.2 %",
              (("two_stage", "added_1", "added_2", "added_3"),)),
    Statement(8, "The large ViT is better on images than the small model (what claim 8 takes for granted)", "-",
              (("vit", "joint"),), column="images"),
    Statement(8, "Large from small: the more is trained, the better, and the gate helps (Tables 6 and 9)",
              "all 91.8, last 8 and gate 89.7, last 8 86.8, pooling and head 85.6 %",
              (("full", "gate", "last", "last_fc"),)),
    Statement(8, "The large model is better than the small one that it comes from (Tables 2 and 6; the paper's gated "
              "one is not)", "all 91.8, gate 89.7 (H); 90.9 (B) %", (("full", "joint"), ("gate", "joint"))),
    Statement(8, "The large model is better than the small one trained on as many clips as both saw (a control of "
              "ours)", "-",
              (("full", "joint_twice"), ("gate", "joint_twice"))),
    Statement(8, "The gated one is better than training all of it, or from scratch, with equal FLOPs (section 3.6)",
              "not given", (("gate", "full_equal"), ("gate", "scratch_equal"), ("gate", "scratch"))),
    Statement(8, "Adapters of all blocks do as well as the last blocks and the gate, with as many trained parameters "
              "(LoRA; not in the paper)", "-", close=(("lora", "gate"),)),
    Statement(9, "Sparse tubes, with images in the steps, are better than dense models at equal FLOPs (Table 2)",
              "TubeViT-B 90.9; ViViT-L FE 82.9, TimeSformer-L 82.2 %", tuple(("joint", variant) for variant in DENSE)),
    Statement(9, "Without images, on as many clips or fewer FLOPs, they still are", "not given",
              tuple(("video", variant) for variant in DENSE)),
)  # fmt: skip


def label(variant: str, claim: int) -> str:
    """Return what a variant is called in the table of a claim."""
    known = {"joint": JOINT.get(claim, "joint")} | LABELS
    return IN_CLAIM.get((claim, variant), known.get(variant, variant))


def scores(rows: list[dict], variant: str, column: str, split: str = "test") -> dict[str, float]:
    """Return top-1 in percent by seed."""
    found = ((row["seed"], row[f"{column}_{split}"]) for row in rows if row["variant"] == variant)
    return {seed: 100 * float(value) for seed, value in found if value}


def mean_and_range(values: list[float]) -> str:
    """Return the mean, and the least and greatest value if there are several."""
    spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def compare(better: dict[str, float], worse: dict[str, float]) -> str:
    """Return a verdict: the first is better in every seed that both have, and by `CLOSE` in the mean."""
    differences = [better[seed] - worse[seed] for seed in better.keys() & worse.keys()]
    mean = statistics.mean(differences)
    if min(differences) > 0 and mean >= CLOSE:
        return "confirmed"
    return "the opposite" if max(differences) < 0 and mean <= -CLOSE else "not confirmed"


def is_close(one: dict[str, float], other: dict[str, float]) -> str:
    """Return a verdict on whether the mean of the first is at most `CLOSE` below that of the second."""
    seeds = one.keys() & other.keys()
    difference = statistics.mean(one[seed] - other[seed] for seed in seeds)
    return "confirmed" if difference >= -CLOSE else "not confirmed"


def verdict(statement: Statement, rows: list[dict]) -> str:
    """Return the verdict on a statement: one word, or one for each comparison if they differ."""
    found, fewest = {}, SEEDS
    comparisons = [(pair, compare, ">") for chain in statement.order for pair in zip(chain, chain[1:])]
    for pair, judge, sign in [*comparisons, *((pair, is_close, "about") for pair in statement.close)]:
        one, other = (scores(rows, variant, statement.column) for variant in pair)
        fewest = min(fewest, len(one.keys() & other.keys()))
        if one.keys() & other.keys():
            found[f" {sign} ".join(label(variant, statement.claim) for variant in pair)] = judge(one, other)
    if not found:
        return "not run yet"
    if len(words := set(found.values())) == 1:
        text = f"**{words.pop()}**"
    else:
        text = "; ".join(f"{names}: **{word}**" for names, word in found.items())
    if fewest == SEEDS:
        return text
    return text + (f" ({fewest} {'seed' if fewest == 1 else 'seeds'} so far)" if fewest else " (not all run yet)")


def table(rows: list[dict]) -> list[str]:
    """Return the table of all statements."""
    lines = ["| | claim of the paper | paper | ours, test top-1 in % | verdict |", "|---|---|---|---|---|"]
    for each in STATEMENTS:
        ours = [
            f"{label(variant, each.claim)} {mean_and_range(list(values.values()))}"
            for variant in each.variants if (values := scores(rows, variant, each.column))
        ]  # fmt: skip
        cells = (str(each.claim), each.text, each.paper, ", ".join(ours) or "-", verdict(each, rows))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def page(text: str, rows: list[dict]) -> str:
    """Replace the table in a page."""
    return replace(text, BEGIN, table(rows))


def plot(rows: list[dict]) -> None:
    """Plot the test top-1 on clips: a panel for each claim, a row for each variant, a dot for each seed."""
    pyplot = svg_pyplot()
    shown = {claim: [each for each in variants if each not in ("images", "vit")] for claim, variants in CLAIMS.items()}
    heights = [len(variants) for variants in shown.values()]
    figure, panels = pyplot.subplots(
        len(CLAIMS), figsize=(7, 0.24 * sum(heights) + 0.5 * len(CLAIMS)), height_ratios=heights, sharex=True
    )
    for axes, (claim, variants) in zip(panels, shown.items()):
        for y, variant in enumerate(variants):
            values = list(scores(rows, variant, "clips").values())
            axes.plot(values, [y] * len(values), "o", color="#1f77b4", alpha=0.6, markersize=4)
            if values:
                axes.vlines(statistics.mean(values), y - 0.35, y + 0.35, color="#1f77b4", linewidth=2)
        axes.set_yticks(range(len(variants)), [label(variant, claim) for variant in variants], fontsize=8)
        axes.set_ylim(len(variants) - 0.5, -0.5)
        axes.set_title(f"claim {claim}", fontsize=8, loc="left")
        axes.grid(axis="x", alpha=0.3)
    panels[-1].set(xlim=(0, 100), xlabel="test top-1 of 80 classes (digit x motion), %")
    figure.tight_layout(h_pad=0.3)
    figure.savefig(FIGURE, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv", type=pathlib.Path, help="print the table of another csv, and write nothing")
    args = parser.parse_args()
    if args.csv:
        print("\n".join(table(read(args.csv))))
        return
    rows = read(CSV)
    for path in PAGES:
        path.write_text(page(path.read_text(), rows))
    plot(rows)


if __name__ == "__main__":
    main()
