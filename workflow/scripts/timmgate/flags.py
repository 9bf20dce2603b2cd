"""What is wrong in a table of cells: the list of failures, and the counts per mode. Arrow in, Arrow out."""

import pandas as pd
import pyarrow as pa

from timmgate.rows import PASSED, STATUSES

FAILURE_COLUMNS = ("stage", "cause", "message", "worst_leaf", "margin", "log", "command")


def failures(cells: pa.Table, check: str = "accuracy") -> pa.Table:
    """One row per cell whose status is not a pass: the cell, its status, where and why, and how to look into it."""
    frame = cells.to_pandas()
    frame = frame[~frame[check].isin(PASSED)]
    columns = {"device": "device", "mode": "mode", "model": "model", check: "status"}
    for name in FAILURE_COLUMNS:
        columns[f"{check}_{name}" if f"{check}_{name}" in frame else name] = name
    table = frame[list(columns)].rename(columns=columns)
    table.insert(3, "check", check)
    return pa.Table.from_pandas(table, preserve_index=False)


def summary(cells: pa.Table, check: str = "accuracy") -> pa.Table:
    """One row per device and mode: cells, how many passed, and one column per status with its count."""
    frame = cells.select(["device", "mode", check]).to_pandas()
    statuses = pd.Categorical(frame[check], categories=list(STATUSES))
    keys = [pd.Categorical(frame[name], categories=frame[name].unique()) for name in ("device", "mode")]
    counts = pd.crosstab(keys, statuses, rownames=["device", "mode"], dropna=False)
    counts.insert(0, "passed", counts[list(PASSED)].sum(axis=1))
    counts.insert(0, "cells", counts[list(STATUSES)].sum(axis=1))
    counts.insert(0, "check", check)
    return pa.Table.from_pandas(counts.reset_index(), preserve_index=False)
