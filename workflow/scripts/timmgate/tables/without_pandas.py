"""Has pyarrow make arrays of lists without pandas: to import that takes a third of a second, and few processes need it.

pyarrow looks for pandas when it makes its first array, and remembers whether there is one. What asks for pandas by itself,
as `Table.to_pandas` does, looks again.
"""

import sys
from importlib.abc import MetaPathFinder

import pyarrow as pa


class _Hidden(MetaPathFinder):
    """Finds no pandas."""

    def find_spec(self, name: str, *_: object) -> None:
        """Nothing, for other finders to go on. Raises ImportError for pandas."""
        if name == "pandas":
            raise ImportError(name)


def settle() -> None:
    """Have pyarrow look for pandas now, and find none, unless somebody has imported it."""
    if "pandas" not in sys.modules:
        hidden = _Hidden()
        sys.meta_path.insert(0, hidden)
        try:
            pa.array([None])
        finally:
            sys.meta_path.remove(hidden)
