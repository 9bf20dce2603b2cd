"""Tables renewed against a registry: what is kept, renamed, removed and added, and that nothing set by hand is lost."""

from pathlib import Path

import pytest

from timmgate.config import suite_refresh, suites
from timmgate.config.registry import Architecture, Registry
from timmgate.config.suite_refresh import Changes
from timmgate.core.spec import Traits

TABLE = """\
# what the table is for
# timm 0.9.0
model\tbatch_size\tbatch_divisor\tfreezing_tolerance\treason
owl\t64\t2\t\t
# of one model
crow_old\t64\t\t0.05\tmeasured
dodo\t8\t\t\t
"""


def architecture(family, size=224, num_classes=1000, pretrained=True):
    return Architecture(family, [3, size, size], num_classes, pretrained)


@pytest.fixture
def known():
    """A registry of birds."""
    return Registry(
        timm="1.2.3",
        architectures={
            "crow": architecture("crows"),
            "finch_large": architecture("finches", size=448),
            "finch_small": architecture("finches", size=192),
            "finch_tiny": architecture("finches", size=192),
            "finch_embedding": architecture("finches", num_classes=0),
            "owl": architecture("owls", size=112),
            "owl_large": architecture("owls"),
            "test_wren": architecture("wrens"),
            "wren": architecture("wrens", size=384, num_classes=0),
            "kiwi": architecture("kiwis", pretrained=False),
        },
        tagged={"crow.in1k": [3, 224, 224], "owl.in1k": [3, 112, 112]},
        renamed={"crow_old": "crow.in1k", "rook": "crow.in1k", "auk": None, "moa": "emu"},
    )


def test_what_timm_has_is_kept(known):
    assert suite_refresh.compare(["owl", "crow.in1k"], known).kept == ["owl", "crow.in1k"]


def test_what_timm_has_renamed_gets_its_new_name(known):
    changes = suite_refresh.compare(["owl", "crow_old"], known)
    assert (changes.kept, changes.renamed, changes.removed) == (["owl"], {"crow_old": "crow.in1k"}, {})


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("owll", "timm does not have it any more; did you mean owl or"),
        ("owl.in21k", "timm does not have it any more"),
        ("auk", "timm does not have it any more"),
        ("moa", "timm does not have it any more"),
    ],
    ids=["misspelt", "tag is gone", "retired without a successor", "successor is gone"],
)
def test_what_timm_does_not_have_is_removed(known, name, reason):
    changes = suite_refresh.compare(["crow", name], known)
    assert changes.removed.keys() == {name}
    assert changes.removed[name].startswith(reason)


@pytest.mark.parametrize("models", [["crow.in1k", "rook"], ["rook", "crow.in1k"], ["crow_old", "rook"]])
def test_a_new_name_that_the_table_has_already_is_not_doubled(known, models):
    changes = suite_refresh.compare(models, known)
    assert [*changes.kept, *changes.renamed.values()] == ["crow.in1k"]
    assert changes.removed == {"rook": "timm calls it crow.in1k now, and the table has that already"}


def test_every_family_with_weights_and_without_a_model_gets_one(known):
    assert suite_refresh.compare(["owl", "crow_old"], known).added == ["finch_small", "wren"]


def test_a_family_stands_by_its_first_imagenet_model_nearest_to_224_pixels(known):
    assert suite_refresh.representatives(known) == {
        "crows": "crow",
        "finches": "finch_small",
        "owls": "owl_large",
        "wrens": "wren",
    }


@pytest.fixture
def renewed(known, tmp_path):
    """Text of the renewed table, and the suite that is read from it; every model costs 123.4."""
    changes = Changes(["owl"], {"crow_old": "crow.in1k"}, {"dodo": "gone"}, ["wren"])
    path = tmp_path / "renewed.tsv"
    path.write_text(suite_refresh.rewrite(TABLE, changes, "1.2.3", lambda model: 123.4))
    return path.read_text(), suites.read(str(path), Path())


def test_columns_set_by_hand_stay_also_under_a_new_name(renewed):
    _, suite = renewed
    assert suite.models["owl"] == Traits(batch_size=64, batch_divisor=2)
    assert suite.models["crow.in1k"] == Traits(batch_size=64, freezing_tolerance=0.05)
    assert "\t0.05\tmeasured\t" in renewed[0]


def test_a_renewed_table_keeps_its_order_and_ends_with_what_was_added(renewed):
    _, suite = renewed
    assert list(suite.models) == ["owl", "crow.in1k", "wren"]


def test_what_is_added_has_the_most_common_batch_size_and_no_special_case(renewed):
    _, suite = renewed
    assert suite.models["wren"] == Traits(batch_size=64)


def test_a_missing_cost_is_filled_in_with_two_digits(renewed):
    _, suite = renewed
    assert suite.cost == {"owl": 120, "crow.in1k": 120, "wren": 120}


def test_a_cost_that_is_there_is_kept_and_not_computed():
    table = "model\tcost\nowl\t7\n"
    assert "owl\t7\n" in suite_refresh.rewrite(table, Changes(["owl"], {}, {}, []), "1.2.3", cost=None)


def test_comments_stay_and_the_version_of_timm_is_the_new_one(renewed):
    text, _ = renewed
    assert text.splitlines()[:3] == ["# what the table is for", "# of one model", "# timm 1.2.3"]
    assert suite_refresh.made_with(text) == "1.2.3"
    assert suite_refresh.made_with(TABLE) == "0.9.0"


def test_a_second_refresh_changes_nothing(known):
    changes = suite_refresh.compare(suite_refresh.models(TABLE), known)
    once = suite_refresh.rewrite(TABLE, changes, known.timm, lambda model: 1.0)
    again = suite_refresh.compare(suite_refresh.models(once), known)
    assert (again.renamed, again.removed, again.added) == ({}, {}, [])
    assert suite_refresh.rewrite(once, again, known.timm, cost=None) == once


def test_the_report_says_what_changed_and_since_when(known):
    changes = suite_refresh.compare(suite_refresh.models(TABLE), known)
    assert suite_refresh.report("birds", "0.9.0", changes, known).splitlines() == [
        "Suite birds, made with timm 0.9.0, refreshed with timm 1.2.3: 1 kept, 1 renamed, 1 removed, 2 added.",
        "renamed  crow_old -> crow.in1k",
        "removed  dodo: timm does not have it any more; known are " + ", ".join(known.architectures),
        "added    finch_small, for its family finches",
        "added    wren, for its family wrens",
        "What was added has the table's most common batch size, if it has any, and no special case.",
    ]


def test_a_table_that_names_no_version_is_reported_as_such(known):
    report = suite_refresh.report("birds", None, Changes([], {}, {}, []), known)
    assert report.startswith("Suite birds, made with a timm that its table does not name, refreshed with timm 1.2.3: 0 kept")
