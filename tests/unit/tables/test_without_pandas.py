"""Arrays of lists are made without pandas, which is still there for who asks for it."""

import subprocess
import sys

CODE = """
import sys
from timmgate.tables import parquet
import pyarrow as pa
table = pa.table({"a": pa.array([1, None]), "b": ["x", None]})
table.to_pylist()
assert "pandas" not in sys.modules
frame = table.to_pandas()
assert frame.isna().sum().tolist() == [1, 1]
assert pa.Table.from_pandas(frame)["a"].null_count == 1
"""


def test_pandas_is_imported_where_it_is_asked_for_and_nowhere_else():
    subprocess.run([sys.executable, "-c", CODE], check=True)
