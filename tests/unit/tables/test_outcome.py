"""How a run ended, for programs: the file, and what the command of the gate makes of it."""

import subprocess
import sys
from pathlib import Path

import pytest

from timmgate.tables.gate import outcome
from timmgate.tables.gate.outcome import ExitCode


def test_an_outcome_is_read_as_it_was_written(tmp_path):
    outcome.write(ExitCode.WRONG_REQUEST, ["no such device", "nor mode"], tmp_path / "new" / "outcome.json")
    assert outcome.read(tmp_path / "new" / "outcome.json") == (ExitCode.WRONG_REQUEST, ["no such device", "nor mode"])


@pytest.mark.parametrize("content", ["", "{}", "[]", "null", '{"outcome": 7, "reasons": []}', '{"outcome": "red"}', "\x00"])
def test_what_is_no_outcome_is_none(content, tmp_path):
    (tmp_path / "outcome.json").write_text(content)
    assert outcome.read(tmp_path / "outcome.json") is None
    assert outcome.read(tmp_path / "absent.json") is None


SNAKEMAKE = """\
#!{python}
import os, pathlib, sys
assert sys.argv[1:4] == ["-m", "snakemake", "gate"]
found = os.environ.get("FOUND")
if found:
    path = pathlib.Path("work", "results", "cpu", "outcome.json")
    path.unlink(missing_ok=True)
    path.write_text('{{"outcome": %s, "reasons": []}}' % found)
sys.exit(int(os.environ["CODE"]))
"""


@pytest.mark.parametrize(
    ("code", "found", "expected"),
    [(0, "0", 0), (1, "1", 1), (1, "2", 2), (1, "", 2), (1, "unreadable", 2), (1, "0", 2)],
    ids=["as expected", "regression", "refused by the preflight", "refused before it began", "no outcome", "failed later"],
)
def test_the_command_ends_with_the_outcome_of_this_run_and_not_of_the_one_before(code, found, expected, tmp_path):
    (tmp_path / "work" / "results" / "cpu").mkdir(parents=True)
    outcome.write(ExitCode.AS_EXPECTED, [], tmp_path / "work" / "results" / "cpu" / "outcome.json")
    outcome.write(ExitCode.REGRESSION, [], tmp_path / "work" / "results" / "cuda" / "outcome.json")
    (tmp_path / "python").write_text(SNAKEMAKE.format(python=sys.executable))
    (tmp_path / "python").chmod(0o755)
    program = f"import sys; sys.executable = {str(tmp_path / 'python')!r}; from timmgate.tables.gate import outcome; "
    program += "sys.exit(outcome.main(['--cores', '2', '--directory', 'work']))"
    environment = {"PYTHONPATH": str(Path(outcome.__file__).parents[2]), "CODE": str(code), "FOUND": found}
    ended = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment)
    assert ended.returncode == expected
