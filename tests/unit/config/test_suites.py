"""Suite tables: what is read from them, what is refused and where it stands, and which models are selected."""

from pathlib import Path

import pytest

from timmgate.config import suites
from timmgate.config.validation import schema
from timmgate.core.errors import ConfigError
from timmgate.core.spec import Traits

SUITES = Path(__file__).parents[3] / "config" / "suites"
SHIPPED = sorted(path.stem for path in SUITES.glob("*.tsv"))


@pytest.fixture
def table(tmp_path):
    """Writes a table from its lines, whose cells are separated by blanks, and returns its path."""

    def write(*lines):
        path = tmp_path / "mine.tsv"
        path.write_text("".join(line.replace(" ", "\t") + "\n" for line in lines))
        return path

    return write


def read(path):
    return suites.read(str(path), SUITES)


def refusal(path):
    with pytest.raises(ConfigError) as refused:
        read(path)
    message = str(refused.value)
    assert "\n" not in message
    return message


def test_a_table_is_read_in_its_order_with_typed_cells(table):
    suite = read(
        table(
            "model batch_size batch_divisor scaled_loss training_tolerance reason training_optimizer skip_on skip_reason",
            "b 64 2 true 0.02 measured sgd cuda,cpu_aarch64 large",
            "a 1 1 false 1e-3 guessed none  ",
        )
    )
    assert suite.name == "mine"
    assert list(suite.models) == ["b", "a"]
    assert suite.models["b"] == Traits(
        batch_size=64,
        batch_divisor=2,
        scaled_loss=True,
        training_tolerance=0.02,
        training_optimizer="sgd",
        skip_on=["cuda", "cpu_aarch64"],
        skip_reason="large",
    )
    assert suite.models["a"] == Traits(training_tolerance=0.001, training_optimizer="none")


def test_only_the_column_model_is_needed(table):
    assert read(table("model", "a", "b.tag")).models == {"a": Traits(), "b.tag": Traits()}


def test_an_empty_cell_means_the_default(table):
    assert read(table("model batch_size scaled_loss", "a  true")).models == {"a": Traits(scaled_loss=True)}


def test_every_column_of_the_schema_can_be_used(table):
    properties = schema("suite")["properties"]
    values = {"integer": "3", "number": "0.5", "boolean": "true", "string": "text", "array": "cpu"}
    kinds = [each if isinstance(each := rule.get("type"), str) else (each or [None])[0] for rule in properties.values()]
    rules = zip(properties.values(), kinds, strict=True)
    cells = [str(rule["enum"][0]) if "enum" in rule else values[kind] for rule, kind in rules]
    assert list(read(table(" ".join(properties), " ".join(cells))).models) == ["text"]


def test_comments_and_empty_lines_are_skipped(table):
    path = table("# of models", "", "model", "# the first", "a", "", "b")
    assert list(read(path).models) == ["a", "b"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-8"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_table_saved_by_a_spreadsheet_is_read(tmp_path, encoding, newline):
    path = tmp_path / "mine.tsv"
    path.write_bytes(newline.join(["model \tbatch_size\tskip_reason", ' a\t 8\tso-called "ä" ', ""]).encode(encoding))
    assert read(path).models == {"a": Traits(batch_size=8, skip_reason='so-called "ä"')}


def test_a_name_is_looked_up_in_the_folder_of_suites():
    suite = suites.read("tiny", SUITES)
    assert suite.name == "tiny"
    assert "test_vit" in suite.models


def test_a_suite_of_the_folder_wins_over_a_file_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tiny").write_text("model\nmine\n")
    assert "mine" not in suites.read("tiny", SUITES).models


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_table_is_valid(name):
    assert suites.read(name, SUITES).models


def test_an_unknown_suite_is_told_the_known_ones(tmp_path):
    message = refusal("tyny")
    assert message.startswith("suite: there is no table 'tyny'")
    assert message.endswith("did you mean tiny?")
    with pytest.raises(ConfigError, match="known are tiny"):
        (tmp_path / "tiny.tsv").write_text("model\na\n")
        suites.read("qqq", tmp_path)


@pytest.mark.parametrize(
    ("lines", "place", "sentence"),
    [
        (["model batchsize", "a 8"], "line 1", "unknown column 'batchsize'; did you mean batch_size?"),
        (["# suite", "model batchsize", "a "], "line 2", "unknown column 'batchsize'"),
        (["name", "a"], "line 1", "unknown column 'name'"),
        (["batch_size", "8"], "line 1", "the column 'model' is missing"),
        (["model batch_size batch_size", "a 8 8"], "line 1", "the column 'batch_size' is there twice"),
        (["model batch_size", "a 8", "b"], "line 3", "the row has 1 cells, the header 2"),
        (["model", "# comment", "", "a 8"], "line 4", "the row has 2 cells, the header 1"),
        (["model batch_size", " 8"], "line 2", "the key 'model' is missing"),
        (["model", "a/b"], "line 2", "model: 'a/b' must be a name of letters"),
        (["model", "a", "b", "a"], "line 4", "the model 'a' is listed twice"),
        (["model batch_size", "a many"], "line 2", "batch_size is 'many'; it must be a whole number"),
        (["model batch_size", "a 0"], "line 2", "batch_size is 0; it must be at least 1"),
        (["model training_tolerance reason", "a 0 x"], "line 2", "training_tolerance is 0.0; it must be more than 0"),
        (["model training_tolerance reason", "a nan x"], "line 2", "training_tolerance is 'nan'; it must be a number"),
        (["model scaled_loss", "a yes"], "line 2", "scaled_loss is 'yes'; it must be true or false"),
        (
            ["model training_optimizer", "a lion"],
            "line 2",
            "training_optimizer is 'lion'; it must be one of adam, sgd",
        ),
        (["model training_tolerance", "a 0.1"], "line 2", "training_tolerance is set, so reason must be set too"),
    ],
)
def test_a_wrong_table_is_refused_with_file_and_line(table, lines, place, sentence):
    path = table(*lines)
    assert refusal(path).startswith(f"{path}, {place}: {sentence}")


@pytest.mark.parametrize("lines", [[], ["# nothing"], ["model"], ["model", "# a"]])
def test_a_table_without_models_is_refused(table, lines):
    path = table(*lines)
    assert refusal(path) == f"{path}: the table lists no model"


def test_a_file_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "cells.parquet"
    path.write_bytes(b"PAR1\xff\xfe\x00")
    assert refusal(path).startswith(f"{path}: the file is not text")


@pytest.fixture
def suite(table):
    return read(table("model", "test_vit", "test_vit2", "test_resnet", "resnet.tag"))


@pytest.mark.parametrize(
    ("models", "exclude", "expected"),
    [
        ([], [], ["test_vit", "test_vit2", "test_resnet", "resnet.tag"]),
        (["test_vit"], [], ["test_vit"]),
        (["test_resnet", "test_vit"], [], ["test_vit", "test_resnet"]),
        (["test_*"], [], ["test_vit", "test_vit2", "test_resnet"]),
        (["test_vit?", "*.tag"], [], ["test_vit2", "resnet.tag"]),
        ([], ["test_vit"], ["test_vit2", "test_resnet", "resnet.tag"]),
        (["*vit*", "*resnet*"], ["*2", "resnet.*"], ["test_vit", "test_resnet"]),
        (["test_vit", "test_v*"], [], ["test_vit", "test_vit2"]),
    ],
)
def test_models_are_selected_by_names_and_globs_in_the_order_of_the_table(suite, models, exclude, expected):
    assert list(suites.select(suite, tuple(models), tuple(exclude))) == expected


def test_selected_models_keep_their_traits(table):
    suite = read(table("model batch_size", "a 8", "b 16"))
    assert suites.select(suite, ("b",), ()) == {"b": Traits(batch_size=16)}


def test_one_glob_of_several_may_match_nothing():
    suite = suites.Suite("mine", {"a": Traits(), "b": Traits()})
    assert list(suites.select(suite, ("a*", "c*"), ("d*",))) == ["a"]


@pytest.mark.parametrize(
    ("models", "exclude", "sentence"),
    [
        (["test_vitt"], [], "models: 'test_vitt' matches no model of the suite 'mine'; did you mean test_vit"),
        (["vit_*", "dla*"], [], "models: vit_*, dla* matches no model of the suite 'mine'"),
        (["TEST_VIT"], [], "models: 'TEST_VIT' matches no model"),
        ([], ["test_resnets"], "exclude: 'test_resnets' matches no model of the suite 'mine'; did you mean test_resnet"),
        ([], ["*"], "exclude: nothing is left of the suite 'mine'"),
        (["test_vit"], ["test_v*"], "exclude: nothing is left of the suite 'mine'"),
    ],
)
def test_a_selection_of_nothing_is_refused(suite, models, exclude, sentence):
    with pytest.raises(ConfigError) as refused:
        suites.select(suite, tuple(models), tuple(exclude))
    assert str(refused.value).startswith(sentence)
