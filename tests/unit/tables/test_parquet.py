"""The schemas of result files, and files that are whole or not there."""

import re

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from timmgate.core import schemas
from timmgate.core.spec import CHECKS
from timmgate.tables import parquet

UNITS = {r"(?<!_per)_s": "s", "_ms": "ms", "_bytes": "bytes", "batch_size(_requested)?": "images", "_per_s": "1/s"} | {
    "gmacs": "1e9",
    "mactivations": "1e6",
}
"""Ends of column names, and the unit that they promise."""

FIELDS = [(kind, field) for kind, schema in parquet.SCHEMAS.items() for field in schema]
KEY = {"device": "cpu", "mode": "inference", "model": "test_vit"}


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(("kind", "field"), FIELDS, ids=[f"{kind}.{field.name}" for kind, field in FIELDS])
def test_a_column_says_what_it_means_and_in_which_unit(kind, field):
    metadata = {name.decode(): text.decode() for name, text in field.metadata.items()}
    assert metadata["description"].strip()
    assert set(metadata) <= {"description", "unit"}
    promised = [unit for end, unit in UNITS.items() if re.search(f"{end}$", field.name)]
    assert metadata.get("unit") in (promised or [None, "pixels"])


@pytest.mark.parametrize("kind", parquet.SCHEMAS)
def test_no_column_is_there_twice(kind):
    names = parquet.SCHEMAS[kind].names
    assert len(names) == len(set(names))


@pytest.mark.parametrize("kind", parquet.SCHEMAS)
def test_every_table_can_be_joined_by_cell(kind):
    assert parquet.SCHEMAS[kind].names[:3] == ["device", "mode", "model"]


@pytest.mark.parametrize("check", CHECKS)
def test_every_stage_has_a_column_for_its_seconds(check):
    assert {f"{check}_{stage}_s" for stage in schemas.STAGES[check]} <= set(parquet.SCHEMAS[check].names)


def test_every_check_has_a_table_of_rows_and_one_of_details_and_the_cells_have_the_columns_of_all():
    assert {*CHECKS, *CHECKS.values(), "cells", "attempts"} == set(parquet.SCHEMAS)
    assert set(parquet.SCHEMAS["cells"].names) == {name for check in CHECKS for name in parquet.SCHEMAS[check].names}


def test_what_counts_as_passed_is_a_status():
    assert set(schemas.PASSED) < set(schemas.STATUSES)


@pytest.mark.parametrize("kind", parquet.SCHEMAS)
def test_a_column_without_any_value_keeps_its_type_unit_and_meaning_in_the_file(kind, tmp_path):
    parquet.write(parquet.table(kind, [KEY]), tmp_path / "a.parquet")
    schema = pq.read_schema(tmp_path / "a.parquet")
    assert schema == parquet.SCHEMAS[kind]
    assert [field.metadata for field in schema] == [field.metadata for field in parquet.SCHEMAS[kind]]


def test_rows_with_and_without_a_value_go_into_one_table(tmp_path):
    parquet.write(parquet.table("accuracy", [KEY]), tmp_path / "a.parquet")
    parquet.write(parquet.table("accuracy", [{**KEY, "margin": 0.5, "input_size": [3, 8, 8]}]), tmp_path / "b.parquet")
    merged = pa.concat_tables([pq.read_table(tmp_path / name) for name in ("a.parquet", "b.parquet")])
    assert merged["margin"].to_pylist() == [None, 0.5]
    assert merged["input_size"].to_pylist() == [None, [3, 8, 8]]


def test_a_column_that_the_schema_lacks_is_refused():
    with pytest.raises(KeyError, match="accuracy rows have no column color, flavour"):
        parquet.table("accuracy", [KEY, {**KEY, "flavour": 1, "color": 2}])


def test_a_value_of_the_wrong_type_is_refused():
    with pytest.raises((pa.ArrowInvalid, pa.ArrowTypeError)):
        parquet.table("accuracy", [{**KEY, "margin": "large"}])


def test_a_file_replaces_the_one_before(tmp_path):
    path = tmp_path / "new" / "folder" / "row.parquet"
    parquet.write(parquet.table("accuracy", [KEY]), path)
    parquet.write(parquet.table("accuracy", [{**KEY, "accuracy": "pass"}]), path)
    assert pq.read_table(path)["accuracy"].to_pylist() == ["pass"]
    assert names_in(path.parent) == ["row.parquet"]


def test_a_tsv_has_one_line_a_row_whatever_the_texts_hold(tmp_path):
    message = 'line one\r\n\tline two, "quoted"\rline three'
    table = parquet.table("accuracy", [{**KEY, "accuracy_message": message, "margin": 0.5}, KEY])
    parquet.write_tsv(table, tmp_path / "rows.tsv")
    lines = (tmp_path / "rows.tsv").read_bytes().splitlines()
    assert len(lines) == 3
    assert len({line.count(b"\t") for line in lines}) == 1
    frame = pd.read_csv(tmp_path / "rows.tsv", sep="\t")
    assert frame["accuracy_message"][0] == 'line one line two, "quoted" line three'
    assert frame["margin"][0] == 0.5
    assert frame["margin"].isna()[1]
