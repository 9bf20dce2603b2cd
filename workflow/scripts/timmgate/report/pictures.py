"""The report's pictures: Vega-Lite charts of the cells, drawn by the page for what is selected there, and as SVG files.

A chart has no data yet: it draws the rows of `cells` (or, of one cell, `leaves` or `samples`). Its colours are names of the
page's style sheet, such as `var(--compiled)`, which `coloured` puts in place.
"""

import json
import math
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from operator import itemgetter
from typing import Any

import altair as alt
import vl_convert

from timmgate.tables.studies.power import CURVE, RULES

SHOWN = 80
"""Cells of a picture with a line for each: half of them from either end."""

WIDTH, HEIGHT, LINE = 640, 300, 15
"""In pixels: of an SVG file (in the page a picture is as wide as there is room), of a picture, of a line for one cell."""

LABEL = "datum.model + '  ' + datum.mode + (datum.build == 'default' ? '' : '  ' + datum.build)"
"""How a cell is called in a picture."""

STAGES = {
    "dynamo": "max(0, datum.dynamo_s - max(datum.aot_autograd_s, datum.inductor_s))",
    "AOT": "max(0, datum.aot_autograd_s - datum.inductor_s)",
    "inductor": "datum.inductor_s - datum.codegen_s",
    "codegen": "datum.codegen_s",
    "rest": "max(0, datum.compile_cold_s - max(datum.dynamo_s, datum.inductor_s))",
}
"""What a cold compile's time is divided into: `dynamo_s` and the like each lie within the one before, but for inductor's
part in training, which compiles the backward pass after dynamo has ended.
"""

Chart = alt.Chart | alt.LayerChart
Spec = dict[str, Any]


@dataclass(frozen=True)
class Picture:
    """A picture.

    * `draw` makes the chart out of one that has the data.
    * `needs` are the columns that a row must have to be in it, `reads` those that it may have.
    * `rows` is what it draws: cells, or of one cell leaves or samples.
    * `counted`: only cells whose speedup says something: what is wrong may well be fast, and what is stale is of another
      program.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[alt.Chart], Chart]
    needs: tuple[str, ...]
    reads: tuple[str, ...] = ()
    rows: str = "cells"
    counted: bool = False

    def has(self, row: Mapping[str, Any]) -> bool:
        """Whether a row is in it."""
        says = not self.counted or (row.get("counted") and not row.get("stale"))
        return bool(says) and all(row.get(name) is not None for name in self.needs)

    def spec(self) -> Spec:
        """Vega-Lite, as wide as its place, without data."""
        valid = " && ".join(f"isValid(datum.{name})" for name in self.needs)
        spec = self.draw(alt.Chart(alt.NamedData(self.rows)).transform_filter(valid)).to_dict()
        about = {"width": "container", "autosize": {"type": "fit-x", "contains": "padding"}, "usermeta": {"lines": SHOWN}}
        return {**{key: value for key, value in spec.items() if key not in ("config", "$schema")}, **about}


def coded(words: Mapping[str, tuple[str, str]], field: str, **options: Any) -> dict[str, Any]:
    """Colour and shape of marks by a column; `words` has both for each value. Never by colour alone."""
    domain, colours, shapes = list(words), *zip(*words.values(), strict=True)
    ranges = {alt.Color: [f"var(--{colour})" for colour in colours], alt.Shape: list(shapes)}
    return {
        channel.__name__.lower(): channel(
            f"{field}:N", title=None, scale=alt.Scale(domain=domain, range=range_), **options
        )
        for channel, range_ in ranges.items()
    }  # fmt: skip


BY_STATE = coded(
    {
        "failure": ("failure", "cross"),
        "warning": ("warning", "triangle-up"),
        "pass": ("pass", "circle"),
        "skipped": ("quiet", "square"),
    },
    "state",
)
BY_VERDICT = coded(
    {
        "faster": ("faster", "circle"),
        "same": ("quiet", "square"),
        "slower": ("slower", "triangle-left"),
        "ambiguous": ("quiet", "cross"),
    },
    "verdict",
)

BY_CHANGE = coded(
    {
        "faster": ("faster", "circle"),
        "same_or_unknown": ("quiet", "square"),
        "slower": ("slower", "triangle-left"),
    },
    "change_verdict",
)

BY_RULE = coded({"strict": ("compiled", "circle"), "dynamo": ("eager", "square"), "cosine": ("quiet", "cross")}, "rule")


def tips(*figures: tuple[str, str, str], names: Sequence[str] = ("model", "mode", "build")) -> list[alt.Tooltip]:
    """What a mark shows when it is pointed at: its name, then figures as expression, title and format."""
    return [
        *(alt.Tooltip(f"{name}:N", title=name) for name in names),
        *(alt.Tooltip(field, title=title, **({"format": form} if form else {})) for field, title, form in figures),
    ]


def logarithmic(channel: type, field: str, title: str, form: str = "~g") -> Any:
    """A position on a logarithmic axis."""
    scale = alt.Scale(type="log", nice=False, padding=12)
    return channel(f"{field}:Q", title=title, scale=scale, axis=alt.Axis(format=form, tickCount=6, grid=False))


def line_at_1(channel: str) -> alt.Chart:
    """The line on which both sides are the same."""
    rule = alt.Chart(alt.InlineData(values=[{}])).mark_rule(color="var(--ink)", opacity=0.55)
    return rule.encode(**{channel: alt.datum(1)})


def extremes(cells: alt.Chart, field: str) -> alt.Chart:
    """The cells with their `label`, but only those from both ends of a column if there are more than `SHOWN`."""
    return (
        cells.transform_calculate(label=LABEL)
        .transform_window(rank="row_number()", sort=[alt.SortField(field, order="descending")])
        .transform_joinaggregate(total="count()")
        .transform_filter(f"datum.rank <= {SHOWN // 2} || datum.rank > datum.total - {SHOWN // 2}")
    )


def lines_by(field: str) -> alt.Y:
    """A line for each cell, from the largest to the smallest."""
    sort = alt.EncodingSortField(field, op="max", order="descending")
    return alt.Y("label:N", title=None, sort=sort, axis=alt.Axis(ticks=False, domain=False))


def speedups(cells: alt.Chart) -> Chart:
    """A line a cell: the speedup with its interval, and the noise floor around 1."""
    base = extremes(cells, "speedup").encode(y=lines_by("speedup")).transform_calculate(
        floor_low="1 / (1 + datum.noise_floor)",
        floor_high="1 + datum.noise_floor",
        interval="format(datum.speedup_ci_low, '.3f') + ' to ' + format(datum.speedup_ci_high, '.3f')",
    )  # fmt: skip
    x = logarithmic(alt.X, "speedup", "speedup, times as fast as eager")
    about = tips(
        ("speedup:Q", "speedup", ".3f"),
        ("interval:N", "95 % interval", ""),
        ("noise_floor:Q", "noise floor", ".3f"),
        ("verdict:N", "verdict", ""),
    )
    return alt.layer(
        base.mark_bar(height=LINE - 1, color="var(--band)").encode(
            x=alt.X("floor_low:Q", title=x["title"]), x2="floor_high:Q"
        ),
        line_at_1("x"),
        base.mark_rule(strokeWidth=1.5).encode(
            x=alt.X("speedup_ci_low:Q", title=x["title"]), x2="speedup_ci_high:Q", color=BY_VERDICT["color"]
        ),
        base.mark_point(filled=True, size=45, opacity=1).encode(x=x, tooltip=about, **BY_VERDICT),
        height=alt.Step(LINE),
    )


def changes(cells: alt.Chart) -> Chart:
    """A line a cell: how compiled over eager differs from that of the other build, with its interval."""
    base = extremes(cells, "change").encode(y=lines_by("change")).transform_calculate(
        interval="format(datum.change_ci_low, '+.1%') + ' to ' + format(datum.change_ci_high, '+.1%')",
    )  # fmt: skip
    x = alt.X("change:Q", title="compiled over eager, against the other build", axis=alt.Axis(format="+%", grid=False))
    about = tips(("change:Q", "change", "+.1%"), ("interval:N", "95 % interval", ""), ("change_verdict:N", "verdict", ""))
    no_change = alt.Chart(alt.InlineData(values=[{}])).mark_rule(color="var(--ink)", opacity=0.55)
    return alt.layer(
        no_change.encode(x=alt.datum(0)),
        base.mark_rule(strokeWidth=1.5).encode(
            x=alt.X("change_ci_low:Q", title=x["title"]), x2="change_ci_high:Q", color=BY_CHANGE["color"]
        ),
        base.mark_point(filled=True, size=45, opacity=1).encode(x=x, tooltip=about, **BY_CHANGE),
        height=alt.Step(LINE),
    )


def paying(cells: alt.Chart) -> Chart:
    """Speedup against what the cold compile takes, coloured by the iterations until it has paid."""
    legend = alt.Legend(title="iterations until it has paid", orient="bottom", gradientLength=220, format="~s")
    even = alt.Color("break_even_iterations:Q", scale=alt.Scale(type="log", scheme="viridis", reverse=True), legend=legend)
    about = tips(
        ("speedup:Q", "speedup", ".3f"),
        ("compile_cold_s:Q", "cold compile, s", ".3~g"),
        ("break_even_iterations:Q", "iterations", ".3~s"),
    )
    points = cells.encode(
        logarithmic(alt.X, "compile_cold_s", "cold compile, s"), logarithmic(alt.Y, "speedup", "speedup"), tooltip=about
    )
    pays = points.transform_filter("isValid(datum.break_even_iterations)").mark_point(filled=True, size=55, opacity=0.9)
    never = points.transform_filter("!isValid(datum.break_even_iterations)")
    return alt.layer(
        line_at_1("y"),
        pays.encode(color=even),
        never.mark_point(shape="cross", filled=True, size=55, color="var(--slower)"),
        height=HEIGHT,
    )


def errors(rows: alt.Chart, eager: str, compiled: str, allowed: str, about: list[alt.Tooltip], **coding: Any) -> Chart:
    """Compiled's error against eager's, with the limit of each point."""
    base = rows.transform_filter(f"datum.{eager} > 0 && datum.{compiled} > 0")
    x = logarithmic(alt.X, eager, "error of eager against float64 (rms)", ".0e")
    y = logarithmic(alt.Y, compiled, "error of compiled", ".0e")
    ends = base.transform_aggregate(low=f"min({eager})", high=f"max({eager})").transform_fold(["low", "high"], ["end", "at"])
    return alt.layer(
        ends.mark_line(color="var(--quiet)", strokeWidth=1).encode(
            alt.X("at:Q", title=x["title"]), alt.Y("at:Q", title=y["title"])
        ),
        base.mark_rule(strokeDash=[1, 3], color="var(--quiet)").encode(x=x, y=y, y2=f"{allowed}:Q"),
        base.mark_tick(thickness=1.5, width=9, orient="horizontal", color="var(--quiet)").encode(
            x=x, y=alt.Y(f"{allowed}:Q", title=y["title"])
        ),
        base.mark_point(filled=True, size=55, opacity=0.9).encode(x=x, y=y, tooltip=about, **coding),
        height=HEIGHT,
    )


def worst_errors(cells: alt.Chart) -> Chart:
    """The worst tensor of each cell."""
    about = tips(
        ("worst_leaf:N", "worst tensor", ""),
        ("worst_eager_rmse:Q", "eager's error", ".2e"),
        ("worst_compiled_rmse:Q", "compiled's error", ".2e"),
        ("worst_allowed_error:Q", "allowed", ".2e"),
        ("margin:Q", "margin", ".3~g"),
    )
    return errors(cells, "worst_eager_rmse", "worst_compiled_rmse", "worst_allowed_error", about, **BY_STATE)


def leaf_errors(leaves: alt.Chart) -> Chart:
    """The worst tensors of one cell."""
    verdicts = {"passes": ("pass", "circle"), "fails": ("failure", "cross")}
    about = tips(
        ("eager_rmse:Q", "eager's error", ".2e"),
        ("compiled_rmse:Q", "compiled's error", ".2e"),
        ("allowed_error:Q", "the dynamo rule allows", ".2e"),
        ("strict_margin:Q", "strict margin", ".3~g"),
        names=("leaf",),
    )
    strictly = "datum.strict ? 'passes' : 'fails'"
    by_dynamo = "datum.accuracy ? 'passes' : 'fails'"
    leaves = leaves.transform_calculate(verdict=f"isValid(datum.strict) ? ({strictly}) : ({by_dynamo})")
    return errors(leaves, "eager_rmse", "compiled_rmse", "allowed_error", about, **coded(verdicts, "verdict"))


def memory(cells: alt.Chart) -> Chart:
    """Eager's peak memory divided by compiled's, against eager's."""
    about = tips(
        ("compression_ratio:Q", "eager over compiled", ".3f"),
        ("eager_peak_bytes:Q", "eager, bytes", ".4~s"),
        ("compiled_peak_bytes:Q", "compiled, bytes", ".4~s"),
    )
    points = cells.mark_point(filled=True, size=55, opacity=0.9).encode(
        logarithmic(alt.X, "eager_peak_bytes", "peak memory of eager, bytes", "~s"),
        logarithmic(alt.Y, "compression_ratio", "eager's peak over compiled's"),
        tooltip=about,
        **BY_STATE,
    )
    return alt.layer(line_at_1("y"), points, height=HEIGHT)


def stages(cells: alt.Chart) -> Chart:
    """A bar a cell: where the time of its cold compile went."""
    parts = (
        extremes(cells, "compile_cold_s").transform_calculate(**STAGES).transform_fold(list(STAGES), ["stage", "seconds"])
    )
    colours = alt.Scale(domain=list(STAGES), range=[f"var(--stage-{number})" for number in range(len(STAGES))])
    return (
        parts.transform_calculate(order=f"indexof({json.dumps(list(STAGES))}, datum.stage)")
        .mark_bar(height=LINE - 4)
        .encode(
            x=alt.X("seconds:Q", title="cold compile, s"),
            y=lines_by("compile_cold_s"),
            color=alt.Color("stage:N", title=None, scale=colours),
            order=alt.Order("order:Q"),
            tooltip=tips(
                ("stage:N", "stage", ""), ("seconds:Q", "s", ".3~g"), ("compile_cold_s:Q", "cold compile, s", ".3~g")
            ),
        )
        .properties(height=alt.Step(LINE))
    )


def drift(cells: alt.Chart) -> Chart:
    """How the times of both sides changed while they were taken."""
    about = tips(
        ("eager_drift:Q", "eager, last over first third", ".3f"),
        ("compiled_drift:Q", "compiled, last over first third", ".3f"),
        ("machine_drift:Q", "fixed kernel, after over before", ".3f"),
    )
    points = cells.mark_point(filled=True, size=55, opacity=0.9).encode(
        logarithmic(alt.X, "eager_drift", "eager, last third of the samples over the first"),
        logarithmic(alt.Y, "compiled_drift", "compiled, the same"),
        tooltip=about,
        **BY_STATE,
    )
    return alt.layer(line_at_1("x"), line_at_1("y"), points, height=HEIGHT)


def samples(pairs: alt.Chart) -> Chart:
    """The times of one cell in the order in which they were taken."""
    return (
        pairs.transform_window(sample="row_number()")
        .transform_calculate(eager="1000 * datum.eager_s", compiled="1000 * datum.compiled_s")
        .transform_fold(["eager", "compiled"], ["side", "ms"])
        .mark_line(point=alt.OverlayMarkDef(filled=True, size=20), strokeWidth=1)
        .encode(
            x=alt.X("sample:Q", title="sample", axis=alt.Axis(tickMinStep=1, format="d", grid=False)),
            y=alt.Y("ms:Q", title="ms an iteration", scale=alt.Scale(zero=False)),
            tooltip=tips(("sample:Q", "sample", "d"), ("ms:Q", "ms", ".4~g"), names=("side",)),
            **coded({"eager": ("eager", "circle"), "compiled": ("compiled", "square")}, "side"),
        )
        .properties(height=200)
    )


def detection(shares: alt.Chart) -> Chart:
    """The share of faults that each rule catches, by their effect, with its interval."""
    base = shares.transform_calculate(
        limits="[datum.effect_from, datum.effect_below]",
        effects="isValid(datum.effect_below) ? join(datum.limits, ' to ') : 'over ' + datum.effect_from",
        counts="datum.caught + ' of ' + datum.applicable",
    )
    axis = alt.Axis(labelAngle=0)
    x = alt.X("effects:N", title="effect: change over eager's own error", sort=alt.SortField("effect_from"), axis=axis)
    y = alt.Y("share:Q", title="faults caught", axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1]))
    about = tips(("effects:N", "effect", ""), ("counts:N", "caught", ""), names=("rule",))
    offset = alt.XOffset("rule:N", sort=list(RULES))
    return alt.layer(
        base.mark_rule(strokeWidth=1.5).encode(
            x=x, xOffset=offset, y=alt.Y("share_ci_low:Q", title=y["title"]), y2="share_ci_high:Q", color=BY_RULE["color"]
        ),
        base.mark_point(filled=True, size=55, opacity=1).encode(x=x, xOffset=offset, y=y, tooltip=about, **BY_RULE),
        height=200,
    )


NAMES = ("model", "mode", "build", "state")

PICTURES = (
    Picture(
        "speedups",
        "Speedup, cell by cell",
        "Of the cells that count, with its 95 % interval. The bar around 1 is the noise floor: what lies in it is no "
        f"difference. Of more than {SHOWN} cells, the {SHOWN // 2} fastest and the {SHOWN // 2} slowest.",
        speedups,
        needs=("speedup",),
        reads=(*NAMES, "speedup_ci_low", "speedup_ci_high", "noise_floor", "verdict"),
        counted=True,
    ),
    Picture(
        "changes",
        "Against the other build, cell by cell",
        "How compiled over eager differs, with its 95 % interval over processes that took turns. Grey: none that could "
        f"be shown. Of more than {SHOWN} cells, the {SHOWN // 2} that lost most and the {SHOWN // 2} that gained most.",
        changes,
        needs=("change",),
        reads=(*NAMES, "change_ci_low", "change_ci_high", "change_verdict"),
    ),
    Picture(
        "stages",
        "Where the compile time goes",
        f"Parts of the cold compile. Of more than {SHOWN} cells, the {SHOWN // 2} that take longest and the {SHOWN // 2} "
        "that take least.",
        stages,
        needs=("compile_cold_s", "dynamo_s", "aot_autograd_s", "inductor_s", "codegen_s"),
        reads=NAMES,
    ),
    Picture(
        "paying",
        "Does compiling pay?",
        "Speedup of the cells that count against the time of the cold compile; the colour says after how many iterations it "
        "has paid. What has a cross saves nothing and never pays.",
        paying,
        needs=("speedup", "compile_cold_s"),
        reads=(*NAMES, "break_even_iterations"),
        counted=True,
    ),
    Picture(
        "errors",
        "Error of compiled against eager's",
        "Of the worst tensor of each cell, both against float64. A tick is the dynamo rule's limit, a colour the verdict of "
        "the whole cell; on the grey line both are equally wrong.",
        worst_errors,
        needs=("worst_eager_rmse", "worst_compiled_rmse", "worst_allowed_error"),
        reads=(*NAMES, "worst_leaf", "margin"),
    ),
    Picture(
        "memory",
        "Memory",
        "Eager's peak memory divided by compiled's: below the line, compiled takes more.",
        memory,
        needs=("compression_ratio", "eager_peak_bytes"),
        reads=(*NAMES, "compiled_peak_bytes"),
    ),
    Picture(
        "drift",
        "Did the machine stay the same?",
        "How the times of either side changed while they were taken. Where both changed alike pairs make up for it; off the "
        "diagonal they do not.",
        drift,
        needs=("eager_drift", "compiled_drift"),
        reads=(*NAMES, "machine_drift"),
    ),
)
"""Pictures of all cells, in order."""

OF_CELL = (
    Picture(
        "leaf_errors",
        "Error of compiled against eager's, tensor by tensor",
        "A tick is the dynamo rule's limit; on the grey line both are equally wrong. Coloured by the strict rule where it "
        "has a verdict of the tensor, else by the dynamo rule.",
        leaf_errors,
        needs=("eager_rmse", "compiled_rmse", "allowed_error"),
        reads=("leaf", "accuracy", "strict", "strict_margin"),
        rows="leaves",
    ),
    Picture(
        "samples",
        "Samples in the order in which they were taken",
        "",
        samples,
        needs=("eager_s", "compiled_s"),
        rows="samples",
    ),
)
"""Pictures of one cell."""

DETECTION = Picture(
    "detection",
    "What a pass means",
    "Share of planted faults that each rule catches, by how much they change, with 95 % intervals.",
    detection,
    needs=("share", "share_ci_low", "share_ci_high"),
    reads=("rule", "effect_from", "effect_below", "caught", "applicable"),
    rows="shares",
)
"""Picture of a study of faults, of one precision and pass."""


def detections(shares: Sequence[Mapping[str, Any]], colours: Mapping[str, str]) -> Iterator[str]:
    """An SVG file for each precision and pass of the table `power`, in the schema `tables.studies.power.SUMMARY`."""
    of_curve = [row for row in shares if (row["effect_from"], row["effect_below"]) in {*pairwise(CURVE)}]
    for (precision, training), rows in groupby(of_curve, itemgetter("precision", "training")):
        which = f"{'training' if training else 'inference'} in {precision}"
        some = [{**row, "effect_below": _finite(row["effect_below"])} for row in rows if row["applicable"]]
        yield svg(replace(DETECTION, title=f"{DETECTION.title}: {which}"), some, colours)


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None  # as JSON has it


def svg(figure: Picture, rows: Sequence[Mapping[str, Any]], colours: Mapping[str, str]) -> str:
    """The picture of these rows as an SVG file."""
    values = [{name: row.get(name) for name in (*figure.needs, *figure.reads)} for row in rows]
    spec = coloured(figure.spec(), colours)
    title = {"text": figure.title, "subtitle": textwrap.wrap(figure.caption, 90), "anchor": "start", "offset": 16}
    own = {"width": WIDTH, "datasets": {**spec.get("datasets", {}), figure.rows: values}, "background": "white"}
    config = {"axisY": {"labelLimit": 260}, "legend": {"orient": "top"}, "view": {"stroke": None}}
    return str(vl_convert.vegalite_to_svg({**spec, **own, "title": title, "autosize": "pad", "config": config}))


def coloured(spec: Spec, colours: Mapping[str, str]) -> Spec:
    """The picture with colours in the place of their names."""
    text = re.sub(r"var\(--([\w-]+)\)", lambda found: colours[found[1]], json.dumps(spec))
    return dict(json.loads(text))
