"""The documentation says what the code does: tables, defaults, commands, names and links."""

import re
import shlex
import shutil
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import pytest
import tomllib
import yaml
from jsonschema import Draft202012Validator
from snakemake.cli import parse_config
from snakemake.utils import update_config

from timmgate.config import settings, suites, validation
from timmgate.core import schemas
from timmgate.core.spec import Mode, Traits
from timmgate.report import documentation
from timmgate.tables import failures, parquet

ROOT = Path(__file__).parents[3]
CONFIG = ROOT / "config" / "config.yaml"
PAGES = [
    *(ROOT / name / "README.md" for name in (".", "config", "config/expected", "profiles", "results")),
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
TEXTS = {str(page.relative_to(ROOT)): page.read_text() for page in PAGES}
COMMANDS = re.findall(r"^(?:\$ )?(snakemake .*)$", "\n".join(TEXTS.values()), re.MULTILINE)

CONFIG_SCHEMA, SUITE_SCHEMA = validation.schema("config"), validation.schema("suite")
MODE_SCHEMA = CONFIG_SCHEMA["$defs"]["mode"]


def cells_of(line):
    return [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def table(page, name):
    """The lines of a table by their first cell."""
    section = TEXTS[page].split(f"<!-- begin {name} -->\n")[1].split(f"<!-- end {name} -->")[0]
    return {cells_of(line)[0].strip("`"): cells_of(line)[1:] for line in section.splitlines()[2:]}


@pytest.mark.parametrize("page", TEXTS)
def test_the_tables_are_those_that_the_code_gives(page):
    assert documentation.rendered(TEXTS[page]) == TEXTS[page], (
        "run: PYTHONPATH=workflow/scripts python -m timmgate.report.documentation"
    )


def test_every_key_is_identity_or_policy():
    named = set(re.findall(r"`(\w+)`", TEXTS["docs/protocol.md"].split("\n## Identity and policy\n")[1]))
    thresholds = {key for key in CONFIG_SCHEMA["properties"] if key.startswith(("min_", "max_"))}
    assert sorted(CONFIG_SCHEMA["properties"].keys() - thresholds - named) == []


def test_every_table_is_on_exactly_one_page():
    begun = re.findall(r"<!-- begin (\w+) -->", "".join(TEXTS.values()))
    assert sorted(begun) == sorted(documentation.tables())


def test_a_stale_table_is_rewritten_and_the_rest_of_the_page_left_alone():
    stale = "above\n<!-- begin statuses -->\n| old |\n<!-- end statuses -->\nbelow\n"
    fresh = documentation.rendered(stale)
    assert fresh.startswith("above\n<!-- begin statuses -->\n| status | meaning |\n")
    assert fresh.endswith("<!-- end statuses -->\nbelow\n")
    assert "old" not in fresh
    assert documentation.rendered(fresh) == fresh


def test_an_unknown_table_is_an_error():
    with pytest.raises(KeyError, match="colours"):
        documentation.rendered("<!-- begin colours -->\n<!-- end colours -->\n")


@pytest.mark.parametrize(
    ("name", "properties"),
    [
        ("keys", CONFIG_SCHEMA["properties"]),
        ("builds", CONFIG_SCHEMA["$defs"]["build"]["properties"]),
        ("options", MODE_SCHEMA["properties"]),
        ("suite", SUITE_SCHEMA["properties"]),
    ],
)
def test_every_property_of_a_schema_is_documented_and_nothing_else(name, properties):
    documented = table("config/README.md", name)
    assert {key: line[-1] for key, line in documented.items()} == {
        key: rule["description"] for key, rule in properties.items()
    }
    assert all(
        words in documented[key][0]
        for key, rule in properties.items()
        for words in map(str, rule.get("enum", []))
        if words != "None"
    )


SCHEMAS = {**parquet.SCHEMAS, "failures": failures.SCHEMA}


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_column_is_documented_with_unit_and_meaning_and_nothing_else(name):
    documented = {column: tuple(line[1:]) for column, line in table("docs/tables.md", name).items()}
    assert documented == {
        field.name: (field.metadata.get(b"unit", b"").decode(), field.metadata[b"description"].decode())
        for field in SCHEMAS[name]
    }


def test_every_status_but_a_pass_can_be_asked_for_again():
    known = CONFIG_SCHEMA["properties"]["retry"]["items"]["enum"]
    assert set(known) == {"failed", *schemas.FAILED}


def test_every_kind_of_failure_is_documented_in_order_of_gravity():
    documented = table("docs/tables.md", "kinds")
    assert list(documented) == list(failures.KINDS)
    assert {kind: line[0] for kind, line in documented.items()} == {
        kind.name: kind.severity for kind in failures.KINDS.values()
    }


def test_every_status_is_documented_and_nothing_else():
    assert {word: meaning for word, (meaning,) in table("README.md", "statuses").items()} == schemas.STATUSES


@pytest.mark.parametrize(
    ("name", "defaults"),
    [("keys", yaml.safe_load(CONFIG.read_text())), ("options", asdict(Mode())), ("suite", asdict(Traits()))],
)
def test_documented_defaults_are_the_defaults(name, defaults):
    for key, line in table("config/README.md", name).items():
        if line[1] == "see config.yaml":
            assert name == "keys"
        elif line[1]:
            assert yaml.safe_load(line[1].strip("`")) == defaults[key]
        else:
            assert key not in defaults


@pytest.mark.parametrize(
    ("properties", "names"),
    [
        (CONFIG_SCHEMA["properties"], set(yaml.safe_load(CONFIG.read_text()))),
        (CONFIG_SCHEMA["properties"], set(CONFIG_SCHEMA["required"])),
        (MODE_SCHEMA["properties"], set(asdict(Mode()))),
    ],
    ids=["config.yaml", "required keys", "Mode"],
)
def test_schema_and_defaults_have_the_same_names(properties, names):
    assert set(properties) == names


def test_every_trait_of_a_model_is_a_column_of_suite_tables():
    assert set(asdict(Traits())) < set(SUITE_SCHEMA["properties"])


def test_defaults_of_a_mode_are_what_the_schema_allows():
    Draft202012Validator(MODE_SCHEMA).validate(asdict(Mode()))


def test_defaults_of_a_suite_table_are_what_the_schema_allows():
    given = {name: value for name, value in asdict(Traits()).items() if value is not None}
    Draft202012Validator({**SUITE_SCHEMA, "required": [], "dependentRequired": {}}).validate(given)


@pytest.mark.parametrize(
    ("key", "values"),
    [(key, rule["enum"]) for key, rule in CONFIG_SCHEMA["properties"].items() if "enum" in rule],
)
def test_config_yaml_names_all_values_of_a_key_in_its_line(key, values):
    (line,) = [line for line in CONFIG.read_text().splitlines() if line.startswith(f"{key}:")]
    assert set(values) <= set(re.findall(r"[\w-]+", line))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_documented_command_has_a_valid_configuration(command, installed, listed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(listed, ".cache")
    Path("mine.tsv").write_text("model\nresnet18\n")
    words = shlex.split(command)
    start = words.index("--config") + 1 if "--config" in words else len(words)
    config = yaml.safe_load(CONFIG.read_text())
    update_config(config, parse_config([word for word in words[start:] if not word.startswith("-")]))
    loaded = settings.load(config)
    suite = suites.read(loaded.suite, ROOT / "config" / "suites", installed)
    suites.select(suite, loaded.models, loaded.exclude)


def test_there_are_documented_commands():
    assert len(COMMANDS) >= 5


def anchors(text):
    """What GitHub makes of headings."""
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in re.findall(r"^#+ (.*)$", text, re.M)}


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_somewhere(page):
    for target, _, anchor in re.findall(r"\]\(([^)#]*)(#([^)]*))?\)", TEXTS[page]):
        if target.startswith("https://"):
            continue
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists()
        assert not anchor or anchor in anchors(path.read_text()), (target, anchor)


@pytest.mark.parametrize("page", TEXTS)
def test_names_of_modules_and_make_targets_exist(page):
    assert all(find_spec(module) for module in re.findall(r"python -m (timmgate[\w.]+\w)", TEXTS[page]))
    targets = re.findall(r"^([\w-]+)(?=[\w -]*:)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"^make ([\w-]+)", TEXTS[page], re.MULTILINE)) <= set(targets)


def test_columns_in_the_examples_exist():
    known = {name for schema in parquet.SCHEMAS.values() for name in schema.names}
    for block in re.findall(r"```python\n(.*?)```", TEXTS["README.md"], re.DOTALL):
        for names in re.findall(r"\[\[(.*?)\]\]", block):
            assert set(re.findall(r'"(\w+)"', names)) <= known


def test_the_conda_environment_has_the_dependencies_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    environment = yaml.safe_load((ROOT / "workflow" / "envs" / "timmgate.yaml").read_text())["dependencies"]
    (pip,) = [entry["pip"] for entry in environment if isinstance(entry, dict)]
    extras = project["optional-dependencies"]
    assert sorted(pip) == sorted([*project["dependencies"], *extras["report"], *extras["history"]])
    assert f"python {project['requires-python']}" in environment
