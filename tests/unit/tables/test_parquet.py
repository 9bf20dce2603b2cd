"""The schemas of result files, and files that are complete or absent."""

import csv
import re
from datetime import UTC, datetime
from itertools import groupby

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from timmgate.core import schemas
from timmgate.core.checks import CHECKS
from timmgate.core.spec import PROTOCOL
from timmgate.tables import failures, parquet, summary

UNITS = {r"(?<!_per)_s": "s", "_ms": "ms", "_bytes": "bytes", "batch_size(_requested)?": "images", "_per_s": "1/s"} | {
    "gmacs": "1e9",
    "mactivations": "1e6",
}
"""Ends of column names, and the unit that they promise."""

FIELDS = [(kind, field) for kind, schema in parquet.SCHEMAS.items() for field in schema]
KEY = {"device": "cpu", "build": "default", "mode": "inference", "model": "test_vit"}

CELLS = parquet.SCHEMAS["cells"]

SQL_RESERVED = {
    *("all", "and", "any", "array", "as", "asc", "both", "case", "cast", "check", "column", "constraint", "create", "cross"),
    *("default", "desc", "distinct", "do", "else", "end", "except", "false", "fetch", "for", "foreign", "from", "full"),
    *("grant", "group", "having", "in", "inner", "intersect", "into", "is", "join", "leading", "left", "like", "limit"),
    *("natural", "not", "null", "offset", "on", "only", "or", "order", "outer", "primary", "references", "returning"),
    *("right", "select", "some", "table", "then", "to", "trailing", "true", "union", "unique", "user", "using", "when"),
    *("where", "window", "with", "qualify", "pivot", "unpivot", "show", "describe", "summarize", "lateral", "collate"),
}
"""Words that DuckDB and PostgreSQL take for a column's name only in quotes."""


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(("kind", "field"), FIELDS, ids=[f"{kind}.{field.name}" for kind, field in FIELDS])
def test_a_column_says_what_it_means_and_in_which_unit(kind, field):
    metadata = {name.decode(): text.decode() for name, text in field.metadata.items()}
    assert metadata["description"].strip()
    assert set(metadata) <= {"description", "unit", "group"}
    promised = [unit for end, unit in UNITS.items() if re.search(f"{end}$", field.name)]
    assert metadata.get("unit") in (promised or [None, "pixels"])


@pytest.mark.parametrize("kind", parquet.SCHEMAS)
def test_no_column_is_there_twice(kind):
    names = parquet.SCHEMAS[kind].names
    assert len(names) == len(set(names))


@pytest.mark.parametrize("kind", parquet.SCHEMAS)
def test_every_table_can_be_joined_by_cell(kind):
    assert parquet.SCHEMAS[kind].names[:4] == list(KEY)


@pytest.mark.parametrize("schema", [*parquet.SCHEMAS.values(), failures.SCHEMA, summary.SCHEMA])
def test_no_column_has_a_name_that_sql_wants_in_quotes(schema):
    assert not SQL_RESERVED & set(schema.names)


@pytest.mark.parametrize("check", CHECKS.values(), ids=list(CHECKS))
def test_every_stage_has_a_column_for_its_seconds(check):
    assert {f"{check.name}_{stage.name}_s" for stage in check.stages} <= set(parquet.FILE_SCHEMAS[check.name].names)


def test_there_is_a_table_of_details_for_each_check_and_the_cells_have_the_columns_of_all_files():
    assert {*(check.details for check in CHECKS.values()), "cells", "attempts", "repeats"} == set(parquet.SCHEMAS)
    of_files = {name for schema in parquet.FILE_SCHEMAS.values() for name in schema.names} - {parquet.DETAILS}
    assert set(CELLS.names) == of_files | {column.name for column in schemas.STATE}


def test_the_columns_of_a_cell_stand_in_groups():
    groups = [field.metadata[b"group"].decode() for field in CELLS]
    assert list(dict.fromkeys(groups)) == [
        *("identity", "state", "accuracy", "performance", "cost", "memory", "graph", "provenance"),
    ]
    assert len(list(groupby(groups))) == 8, "each group in one place"


def test_what_counts_as_passed_is_a_status():
    assert set(schemas.PASSED) < set(schemas.STATUSES)


@pytest.mark.parametrize("kind", parquet.SCHEMAS)
def test_a_column_without_any_value_keeps_its_type_unit_and_meaning_in_the_file(kind, tmp_path):
    parquet.write(parquet.table([KEY], parquet.SCHEMAS[kind]), tmp_path / "a.parquet")
    schema = pq.read_schema(tmp_path / "a.parquet")
    assert schema == parquet.SCHEMAS[kind]
    assert [field.metadata for field in schema] == [field.metadata for field in parquet.SCHEMAS[kind]]


@pytest.mark.parametrize("write", [parquet.write, parquet.write_cell])
def test_a_file_says_by_which_protocol_it_was_measured_what_its_units_mean_and_what_wrote_it(write, tmp_path):
    write(parquet.table([KEY], parquet.FILE_SCHEMAS["accuracy"]), tmp_path / "a.parquet")
    about = pq.read_metadata(tmp_path / "a.parquet").metadata
    assert about[b"protocol"].decode() == str(PROTOCOL)
    assert about[b"units"].decode() == parquet.UNITS
    assert b"workflow_commit" in about


@pytest.mark.parametrize("check", CHECKS.values(), ids=list(CHECKS))
def test_a_cells_file_gives_back_its_row_with_the_details_and_their_types(check, tmp_path):
    schema = parquet.FILE_SCHEMAS[check.name]
    values = {"int64": 3, "float64": 0.5, "string": "é", "bool": True, "list<int64>": [1, 2]}
    details = [{column.name: values[column.type] for column in check.detail_columns}, {}]
    began = datetime(2026, 1, 2, 3, 4, 5, 6, UTC)
    row = parquet.table([{**KEY, f"{check.name}_started_at": began, "details": details}], schema)
    parquet.write_cell(row, tmp_path / "a.parquet")
    assert pq.read_table(tmp_path / "a.parquet").equals(row)


def test_a_value_of_every_type_survives_in_one_table_with_rows_that_lack_it(tmp_path):
    rows = [KEY, {**KEY, "margin": 0.5, "input_size": [3, 8, 8]}]
    parquet.write(parquet.table(rows, CELLS), tmp_path / "a.parquet")
    written = pq.read_table(tmp_path / "a.parquet")
    assert written["margin"].to_pylist() == [None, 0.5]
    assert written["input_size"].to_pylist() == [None, [3, 8, 8]]


def test_a_column_that_the_schema_lacks_is_refused():
    with pytest.raises(KeyError, match="there is no column color"):
        parquet.table([KEY, {**KEY, "flavour": 1, "color": 2}], CELLS)


@pytest.mark.parametrize("value", ["large", [1.0], {"a": 1}, 1 + 2j, b"\xff"])
def test_a_value_of_the_wrong_type_is_refused(value):
    with pytest.raises((pa.ArrowException, TypeError)):
        parquet.table([{**KEY, "margin": value}], CELLS)


def test_what_is_refused_can_be_left_out_and_said_instead():
    refused = []
    rows = [{**KEY, "margin": "large", "leaves": 7, "color": 2}]
    (row,) = parquet.table(rows, CELLS, refused.append).to_pylist()
    assert (row["margin"], row["leaves"], row["model"]) == (None, 7, "test_vit")
    assert refused[0] == "there is no column color"
    assert refused[1].startswith("column margin: ")


def test_a_file_replaces_the_one_before(tmp_path):
    path = tmp_path / "new" / "folder" / "row.parquet"
    parquet.write(parquet.table([KEY], CELLS), path)
    parquet.write(parquet.table([{**KEY, "accuracy": "pass"}], CELLS), path)
    assert pq.read_table(path)["accuracy"].to_pylist() == ["pass"]
    assert names_in(path.parent) == ["row.parquet"]


def test_a_tsv_has_one_line_a_row_whatever_the_texts_hold(tmp_path):
    message = 'line one\r\n\tline two, "quoted"\rline three'
    table = parquet.table([{**KEY, "accuracy_message": message, "margin": 0.5}, KEY], CELLS)
    parquet.write_tsv(table, tmp_path / "rows.tsv")
    lines = (tmp_path / "rows.tsv").read_bytes().splitlines()
    assert len(lines) == 3
    assert len({line.count(b"\t") for line in lines}) == 1
    frame = pd.read_csv(tmp_path / "rows.tsv", sep="\t", quoting=csv.QUOTE_NONE)
    assert frame["accuracy_message"][0] == 'line one line two, "quoted" line three'
    assert frame["margin"][0] == 0.5
    assert frame["margin"].isna()[1]


def test_a_count_beside_a_missing_one_is_written_as_a_whole_number(tmp_path):
    parquet.write_tsv(parquet.table([{**KEY, "leaves": 7}, KEY], CELLS).select(["model", "leaves"]), tmp_path / "rows.tsv")
    assert (tmp_path / "rows.tsv").read_text() == "model\tleaves\ntest_vit\t7\ntest_vit\t\n"
