"""What changed in a history, since when and with which versions: per cell, and per suite. Arrow in, Arrow out."""

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from timmgate.core.checks import CHECKS
from timmgate.core.described import columns
from timmgate.core.outcome import OUT_OF_MEMORY
from timmgate.core.run_options import RunOptions
from timmgate.core.schemas import FAILED, KEY, SHOWN_STATUS
from timmgate.core.verdict import status_by_rule
from timmgate.tables import parquet
from timmgate.tables.figures import COMPILE_COLD, EAGER, JUDGED, RELATIVE, Figure, comparable
from timmgate.tables.history import changes, store
from timmgate.tables.history.changes import Change

COLUMNS = columns(
    "history",
    [
        ("finding", "string", "", "step, drift, status or count"),
        ("class", "string", "", "what became of it: slower, faster, more_memory, new_failure, ..."),
        ("device", "string", "", "torch device type"),
        ("device_name", "string", "", "name of the processor or accelerator"),
        ("build", "string", "", "label of what compiles"),
        ("mode", "string", "", "name of the mode"),
        ("suite", "string", "", "suite that the models were taken from"),
        ("model", "string", "", "timm model name; null for the suite as a whole"),
        ("figure", "string", "", "column that changed; relative_time is compiled_ms over eager_ms"),
        ("before", "string", "", "level before, or status"),
        ("after", "string", "", "level since then, or status"),
        ("change", "float64", "", "relative change: 0.03 is 3 % more"),
        ("eager_change", "float64", "", "relative change of eager_ms at the same time; null unless relative_time changed"),
        ("since", "timestamp", "", "start of the first measurement after the change"),
        ("since_run", "string", "", "run of that measurement"),
        ("last_run_before", "string", "", "run of the last measurement before the change, or before the drift began"),
        ("measured_since", "int64", "", "number of measurements from then on"),
        ("versions", "string", "", "what differs between these two runs, as name before -> after"),
        ("torch", "string", "", "torch version of the first measurement after the change"),
        ("models", "int64", "", "of a suite: number of models in the figure"),
    ],
)

SCHEMA = parquet.schema(COLUMNS)

LISTS = ("backends", "imports", "environment", "sources")
"""Columns of an entry that are lists."""

VERSIONS = (
    *("torch", "torch_revision", "triton", "timm", "cuda", "cudnn", "driver", "cxx", "python", "commit", "host"),
    *LISTS,
)
"""Columns of an entry in which the two sides of a change may differ."""

DIGESTS = "sources"
"""One of them, of which it is enough to know whose files differ."""

SUITE = ("device", "device_name", "build", "mode", "suite")
"""What the models of a figure of a suite have in common."""

LEVEL = 8
"""Values before and after a change whose medians are shown as its levels."""

SUITE_LEAST = 5
"""Fewest models of which a mean says something of a suite."""

SUITE_SHARE = 0.5
"""Share of a suite's models that a run must have measured to say something of the suite."""

Row = dict[str, Any]


class Measurements:
    """The measurements of one check in a history, as time series: comparable ones of one cell, in the order of their starts.

    Each series keeps the `latest` of the rows in `entries`. `series` is how many series there are.
    """

    def __init__(self, entries: pa.Table, check: str, latest: int):
        self.entries, self.check = entries, check
        measured = np.flatnonzero(np.asarray(pc.is_valid(entries[f"{check}_started_at"])))
        starts = np.asarray(entries[f"{check}_started_at"].cast(pa.int64()).fill_null(0))[measured]
        codes = self._series_of(measured, starts)
        order = np.argsort(codes, kind="stable")
        if ((np.diff(starts[order]) < 0) & (np.diff(codes[order]) == 0)).any():  # runs were not added as they were measured
            order = np.lexsort((starts, codes))
        order, codes = measured[order], codes[order]
        ends = np.cumsum(np.bincount(codes))
        is_late = np.arange(len(codes)) >= ends[codes] - latest
        self._order, self._codes, self.series = order[is_late], codes[is_late], len(ends)

    def _series_of(self, measured: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """For each measurement the number of its series.

        One that ended before its device or its batch size was known, or ran out of memory with ever smaller batches, is in
        the series that the cell had before, or after: it changed its status, and has no figures.
        """
        entries, names = self.entries, (*KEY, *comparable(self.check))
        threads = f"{self.check}_threads"  # they change times on a CPU alone
        on_cpu = pc.equal(entries["device"].cast(pa.string()), "cpu")
        entries = entries.set_column(
            entries.schema.get_field_index(threads), threads, pc.if_else(on_cpu, entries[threads], None)
        )
        codes: np.ndarray = _codes([entries[name] for name in names])[measured]
        told = ("device_name", f"{self.check}_batch_size")
        is_known = np.logical_and.reduce([np.asarray(pc.is_valid(entries[name])) for name in told])[measured]
        status = _dictionary(entries[SHOWN_STATUS[self.check]])
        lacking = [number for number, word in enumerate(status.dictionary.to_pylist()) if word in OUT_OF_MEMORY]
        is_known &= ~np.isin(np.asarray(status.indices.fill_null(-1))[measured], lacking)
        if is_known.all():
            return codes
        cells = _codes([entries[name] for name in names if name not in told])[measured]
        some = np.flatnonzero(np.isin(cells, cells[~is_known]))
        some = some[np.lexsort((starts[some], cells[some]))]
        places = np.arange(len(some))
        before = np.maximum.accumulate(np.where(is_known[some], places, -1))
        after = np.minimum.accumulate(np.where(is_known[some], places, len(some))[::-1])[::-1]
        for nearest in (after.clip(max=len(some) - 1), before.clip(min=0)):
            is_own = is_known[some[nearest]] & (cells[some[nearest]] == cells[some])
            codes[some[is_own]] = codes[some[nearest[is_own]]]
        return _renumbered(codes)

    @cached_property
    def suites(self) -> np.ndarray:
        """For each row of `entries`, the number of the suite on a device, by a build, in a mode."""
        return _codes([self.entries[name] for name in SUITE])

    @cached_property
    def runs(self) -> np.ndarray:
        """For each row of `entries`, the number of its run in the order of time."""
        encoded = _dictionary(self.entries["run"])
        ranks = np.argsort(np.argsort(np.array(encoded.dictionary.to_pylist(), str)))
        numbers: np.ndarray = ranks[np.asarray(encoded.indices)]
        return numbers

    def recent(self, runs: int) -> np.ndarray:
        """For each row of `entries`, whether it is of one of the last runs of its suite: what ended before is no news."""
        first = np.zeros(self.suites.max(initial=-1) + 1, int)
        for suite in range(len(first)):
            first[suite] = np.unique(self.runs[self.suites == suite])[-runs:][0]
        recent: np.ndarray = self.runs >= first[self.suites]
        return recent

    def rows(self, *columns: str) -> np.ndarray:
        """Row numbers of the measurements that have a figure of these columns, shape (series, values).

        Series end together: a shorter one begins with -1.
        """
        has_one = np.logical_and.reduce([np.asarray(pc.is_valid(self.entries[name])) for name in columns])[self._order]
        order, codes = self._order[has_one], self._codes[has_one]
        lengths = np.bincount(codes, minlength=self.series)
        width, ends = int(lengths.max(initial=0)), np.cumsum(lengths)
        rows = np.full((self.series, width), -1)
        rows[codes, width - ends[codes] + np.arange(len(codes))] = order
        return rows

    def logarithms(self, figure: Figure, rows: np.ndarray) -> np.ndarray:
        """Logarithms of a figure in these rows; NaN where there is none, or none that is positive."""
        columns = [np.asarray(self.entries[name].cast(pa.float64()).fill_null(math.nan)) for name in figure.columns]
        with np.errstate(invalid="ignore", divide="ignore"):
            one, *others = np.log(columns)
            found = (one - others[0] if others else one).astype(np.float32)
        return np.where((rows >= 0) & np.isfinite(found[rows]), found[rows], np.float32(math.nan))


READ = (
    *("run", *KEY, "suite"),
    *dict.fromkeys(name for figure in JUDGED for name in figure.columns),
    *dict.fromkeys(name for check in CHECKS for name in (SHOWN_STATUS[check], f"{check}_started_at", *comparable(check))),
    *("accuracy", "strict"),
)
"""Columns of a history that it takes to find what changed."""


def changed(root: Path, device: str, runs: int, accuracy_rule: str = RunOptions.accuracy_rule) -> tuple[pa.Table, str]:
    """What changed in the last `runs` measurements of each series, in the schema `SCHEMA`: suites first, then the latest.

    Of series without a measurement in the last `runs` runs of their suite nothing is told. Also in words what the history
    has. Only changes on this device are told, by today's `accuracy_rule`: that another one was recorded is no change.
    """
    entries = _by_rule(store.read(root, READ).unify_dictionaries(), accuracy_rule)
    found: list[Row] = []
    for check in CHECKS:
        measurements = Measurements(entries, check, changes.needed(runs))
        found += _settled(measurements, SHOWN_STATUS[check], runs)
        if check == "performance":
            for figure in JUDGED:
                if figure.is_count:
                    found += _settled(measurements, figure.column, runs, figure)
                else:
                    some = [*_cells(measurements, figure, runs), *_suites(measurements, figure, runs)]
                    found += [row for row in some if figure is not COMPILE_COLD or not _is_of_threads(row, entries)]
            found += _suites(measurements, EAGER, runs)
    is_recent = measurements.recent(runs)  # the same of either check
    found = _described([row for row in found if is_recent[row["end"]]], entries, root)
    found = [row for row in found if row["device"] == device]
    found.sort(key=lambda row: (row["model"] is not None, -row["since"].timestamp(), -abs(row.get("change") or math.inf)))
    return parquet.table(found, SCHEMA), extent(entries, runs)


def _by_rule(entries: pa.Table, rule: str) -> pa.Table:
    """The entries with the accuracy that each has by a rule."""
    accuracy, strict = (entries[name].combine_chunks() for name in ("accuracy", "strict"))
    # Of few different pairs, many times; the last of each is null.
    words = [[*each.dictionary.to_pylist(), None] for each in (accuracy, strict)]
    one, other = (
        np.asarray(pc.fill_null(each.indices, len(known) - 1)) for each, known in zip((accuracy, strict), words, strict=True)
    )
    judged = [status_by_rule(status, verdict, rule)[0] for status in words[0] for verdict in words[1]]
    known = list(dict.fromkeys(filter(None, judged)))
    numbers = np.array([known.index(status) if status else -1 for status in judged], np.int32)[one * len(words[1]) + other]
    column = pa.DictionaryArray.from_arrays(pa.array(numbers, mask=numbers < 0), pa.array(known, pa.string()))
    return entries.set_column(entries.schema.get_field_index("accuracy_by_rule"), "accuracy_by_rule", column)


def _is_of_threads(row: Row, entries: pa.Table) -> bool:
    """Whether the sides of a change had another number of threads, as of compile times on an accelerator alone they may."""
    last, first = (entries["performance_threads"][row[side]].as_py() for side in ("last", "first"))
    return bool(last != first)


def _described(found: list[Row], entries: pa.Table, root: Path) -> list[Row]:
    """Each finding with what is known of the two rows of `entries` that `_between` names.

    Of versions, which take longer to read than all else, only those of the runs in question are read.
    """
    names = [*KEY, "device_name", "suite", "run", *VERSIONS, *(f"{check}_started_at" for check in CHECKS)]
    numbers = {side: np.array([row[side] for row in found], int) for side in ("last", "first")}
    runs = _dictionary(entries["run"])
    concerned = np.unique(np.asarray(runs.indices)[np.concatenate(list(numbers.values()))])
    rows = np.flatnonzero(np.isin(np.asarray(runs.indices), concerned))
    about = store.read(root, names, runs=set(runs.dictionary.take(pa.array(concerned)).to_pylist()))  # in the same order
    sides = [about.take(pa.array(np.searchsorted(rows, each))).to_pylist() for each in numbers.values()]
    return [_of_sides(row, *both) for row, *both in zip(found, *sides, strict=True)]


def _of_sides(row: Row, before: Row, after: Row) -> Row:
    finding = {name: value for name, value in row.items() if name not in ("last", "first", "end", "check")}
    names = [name for name in VERSIONS if before[name] != after[name]]
    return {
        **{name: after[name] for name in (*KEY, "device_name", "suite", "torch")},
        "since": after[f"{row['check']}_started_at"],
        "since_run": after["run"],
        "last_run_before": before["run"],
        "versions": "; ".join(_difference(name, before[name], after[name]) for name in names),
        **finding,
    }


def _difference(name: str, before: Any, after: Any) -> str:
    """What is another on the two sides of a change; of a list, the items that only one of them has."""
    if name not in LISTS:
        return f"{name} {before} -> {after}"
    one, other = (sorted({*(side or ())} - {*(opposite or ())}) for side, opposite in ((before, after), (after, before)))
    if name == DIGESTS:
        return f"files of {', '.join(sorted({item.partition('=')[0] for item in (*one, *other)}))} differ"
    return f"{name} {', '.join(one) or 'without'} -> {', '.join(other) or 'without'}"


def _settled(measurements: Measurements, column: str, runs: int, figure: Figure | None = None) -> Iterator[Row]:
    """Changes of a status, or of the count that is a figure."""
    rows, encoded = measurements.rows(column), _dictionary(measurements.entries[column])
    words, numbers = encoded.dictionary.to_pylist(), np.asarray(encoded.indices.fill_null(-1))
    if not rows.size:
        return
    codes = np.where(rows >= 0, numbers[rows], -1)
    levels = changes.settled(codes)
    steps = _steps(levels)
    if figure is None:  # one that fails in another way each time fails
        fails = np.isin(np.arange(len(words)), [number for number, word in enumerate(words) if word in FAILED])
        failed = changes.settled(np.where(codes >= 0, fails[codes], -1))
        steps = _steps(failed) | (
            steps & (fails[levels[:, 1:]] == fails[levels[:, :-1]]) & (fails[levels[:, 1:]] == failed[:, 1:])
        )
        levels = np.where(fails[levels] == failed, levels, codes)
    width = rows.shape[1]
    steps[:, : max(0, width - 1 - runs)] = False
    for series, last in zip(*np.nonzero(steps), strict=True):
        before, after = (words[levels[series, number]] for number in (last, last + 1))
        yield {
            **_between(measurements, rows[series], Change(int(last) - width, int(last) + 1 - width, 0.0, -width, 0)),
            "finding": "count" if figure else "status",
            "class": _class_of_count(figure, before, after) if figure else _class_of_status(before, after),
            "figure": column if figure else measurements.check,
            "before": str(before),
            "after": str(after),
        }


def _steps(levels: np.ndarray) -> np.ndarray:
    """Where a settled code is another one than at the position before."""
    found: np.ndarray = (levels[:, 1:] != levels[:, :-1]) & (levels[:, :-1] >= 0)
    return found


def _class_of_count(figure: Figure, before: int, after: int) -> str:
    return figure.worse if after > before else figure.better


def _class_of_status(before: str, after: str) -> str:
    if after not in FAILED:
        return "new_pass" if before in FAILED else "changed_pass"
    return "changed_failure" if before in FAILED else "new_failure"


def _cells(measurements: Measurements, figure: Figure, runs: int) -> Iterator[Row]:
    """Changes of a figure of single cells."""
    rows = measurements.rows(*figure.columns)
    values = measurements.logarithms(figure, rows)
    eager = measurements.logarithms(EAGER, rows) if figure is RELATIVE else None
    for series, change in changes.find(values, runs):
        before, after = _levels(values[series], change)
        moved = None if eager is None else np.subtract(*_levels(eager[series], change)[::-1])
        yield {
            **_between(measurements, rows[series], change),
            **_of_change(figure, change),
            "before": f"{math.exp(before):.4g}",
            "after": f"{math.exp(after):.4g}",
            "eager_change": None if moved is None or math.isnan(moved) else math.expm1(moved),
        }


def _of_change(figure: Figure, change: Change) -> Row:
    return {
        "finding": "drift" if change.is_drift else "step",
        "class": figure.worse if change.step > 0 else figure.better,
        "figure": figure.column,
        "change": math.expm1(change.step),
    }


def _levels(values: np.ndarray, change: Change) -> tuple[float, float]:
    """Medians of some values before and after a change, none of which lie beyond another one."""
    begin, last, first, end = (len(values) + place for place in (change.begin, change.last, change.first, change.end))
    sides = values[max(begin, last - LEVEL + 1) : last + 1], values[first : min(end, first + LEVEL)]
    before, after = (float(np.median(side[np.isfinite(side)])) if np.isfinite(side).any() else math.nan for side in sides)
    return before, after


def _between(measurements: Measurements, rows: np.ndarray, change: Change) -> Row:
    """The rows on both sides of a change of a series with these rows."""
    sides = {"last": int(rows[change.last]), "first": int(rows[change.first])}
    return {**sides, "end": int(rows[-1]), "check": measurements.check, "measured_since": -change.first}


def _suites(measurements: Measurements, figure: Figure, runs: int) -> Iterator[Row]:
    """Changes of the mean of a figure over the models of a suite: the sum of how far it moved from each run to the next.

    A move is the mean over the models that both runs have: one that comes, fails or is measured otherwise moves nothing.
    """
    rows = measurements.rows(*figure.columns)
    values = measurements.logarithms(figure, rows)
    if not rows.size:
        return
    calm = changes.without_outliers(values, changes.noise(values))
    known = np.isfinite(calm)
    suites, run = measurements.suites, measurements.runs
    shape = int(suites.max()) + 1, int(run.max()) + 1
    place = np.ravel_multi_index((suites[rows[known]], run[rows[known]]), shape)
    models = np.bincount(place, minlength=math.prod(shape)).reshape(shape)
    is_told = models >= np.maximum(SUITE_LEAST, SUITE_SHARE * models.max(axis=1, keepdims=True))
    number = np.where(is_told, np.cumsum(is_told, axis=1), -1)[suites[rows], run[rows]]  # of those that are told
    number[~known] = -1
    is_next = (number[:, 1:] == number[:, :-1] + 1) & (number[:, :-1] > 0)
    to = np.ravel_multi_index((suites[rows[:, 1:][is_next]], run[rows[:, 1:][is_next]]), shape)
    moves = np.bincount(to, weights=np.diff(calm, axis=1)[is_next], minlength=math.prod(shape)).reshape(shape)
    moved = moves / np.maximum(1, np.bincount(to, minlength=math.prod(shape)).reshape(shape))
    example = np.full(math.prod(shape), -1)
    example[place] = rows[known]
    for suite in range(shape[0]):
        told = np.flatnonzero(is_told[suite])
        for _, change in changes.find(np.cumsum(moved[suite, told])[None, :], runs):
            yield {
                **_between(measurements, example.reshape(shape)[suite, told], change),
                **_of_change(figure, change),
                "model": None,
                "models": int(models[suite, told[change.first]]),
            }


def _codes(columns: Sequence[pa.ChunkedArray]) -> np.ndarray:
    """A number from 0 for each row, equal where all columns are."""
    codes, different = np.zeros(len(columns[0]), np.int64), 1
    for encoded in map(_dictionary, columns):
        words = len(encoded.dictionary) + 1
        if different * words >= 2**62:
            codes, different = _renumbered(codes), len(codes)
        codes, different = codes * words + np.asarray(encoded.indices.fill_null(words - 1)), different * words
    return _renumbered(codes)


def _renumbered(codes: np.ndarray) -> np.ndarray:
    return np.asarray(pa.array(codes).dictionary_encode().indices).astype(np.int64)


def _dictionary(column: pa.ChunkedArray) -> pa.DictionaryArray:
    """The column as one dictionary array."""
    return (column if pa.types.is_dictionary(column.type) else column.dictionary_encode()).combine_chunks()


def extent(entries: pa.Table, runs: int) -> str:
    """In words, what the history has, and what of it was looked at."""
    times = store.start(entries)
    number, first, last = len(pc.unique(entries["run"])), pc.min(times).as_py(), pc.max(times).as_py()
    words = f"{len(entries)} entr{'y' if len(entries) == 1 else 'ies'} of {number} run{'s' * (number != 1)}"
    if not len(entries):
        return words
    return f"{words} from {first:%Y-%m-%d} to {last:%Y-%m-%d}; changes in the last {runs} measurements of each cell"
