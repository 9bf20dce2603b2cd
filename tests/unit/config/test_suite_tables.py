"""The shipped tables: names that timm has, special cases as PyTorch's suite has them, reasons for what was set by hand."""

import csv
from pathlib import Path

import pytest

import specs
from timmgate.config import registry, suite_refresh, suites
from timmgate.config.validation import schema
from timmgate.core.spec import Traits

FOLDER = Path(__file__).parents[3] / "config" / "suites"
SHIPPED = sorted(path.stem for path in FOLDER.glob("*.tsv"))
DASHBOARDS = [name for name in SHIPPED if name.startswith("dashboard")]


@pytest.fixture(scope="module")
def known():
    return registry.installed()


def text(name):
    return (FOLDER / f"{name}.tsv").read_text()


def rows(name):
    """The rows as they are written."""
    lines = [line for line in text(name).splitlines() if not line.startswith("#")]
    return list(csv.DictReader(lines, delimiter="\t"))


def traits(suite, model):
    return suites.read(suite, FOLDER).models[model]


@pytest.mark.parametrize(("name", "models"), [("dashboard-2024", 62), ("dashboard-2026", 18), ("tiny", 6)])
def test_a_suite_has_as_many_models_as_it_should(name, models):
    assert len(rows(name)) == models


@pytest.mark.parametrize("name", SHIPPED)
def test_every_model_is_in_the_installed_timm(name, known):
    assert [row["model"] for row in rows(name) if row["model"] not in known and row["model"] not in known.renamed] == []


@pytest.mark.parametrize("name", SHIPPED)
def test_no_model_is_listed_twice(name):
    models = [row["model"] for row in rows(name)]
    assert sorted(set(models)) == sorted(models)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_tolerance_set_by_hand_has_a_reason(name):
    by_hand = [row for row in rows(name) if row.get("training_tolerance") or row.get("freezing_tolerance")]
    assert [row["model"] for row in by_hand if not row["reason"]] == []


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_says_which_timm_it_was_made_with(name):
    assert suite_refresh.made_with(text(name)) == "1.0.31"


@pytest.mark.parametrize("name", DASHBOARDS)
def test_every_model_of_a_dashboard_has_a_batch_size_and_a_cost(name):
    assert [row["model"] for row in rows(name) if not row["batch_size"] or not row["cost"]] == []


@pytest.mark.parametrize("model", ["resnest101e", "lcnet_050", "fbnetv3_b"])
def test_the_cost_in_the_table_is_that_of_the_model(model, known):
    assert suites.read("dashboard-2024", FOLDER).cost[model] == pytest.approx(registry.cost(known, model), rel=0.05)


def test_the_newer_dashboard_is_the_older_one_thinned_out_with_four_new_models():
    older, newer = ({row["model"] for row in rows(name)} for name in ("dashboard-2024", "dashboard-2026"))
    assert newer - older == {
        "convnextv2_nano.fcmae_ft_in22k_in1k",
        "deit_tiny_patch16_224.fb_in1k",
        "vit_base_patch14_dinov2.lvd142m",
        "vit_base_patch16_siglip_256",
    }


CASES = [
    ("dashboard-2024", "levit_128", {"training_tolerance": 0.08, "batch_size": 1024}),
    ("dashboard-2024", "beit_base_patch16_224", {"training_tolerance": 0.01}),
    ("dashboard-2024", "cspdarknet53", {"training_tolerance": 0.04, "freezing_tolerance": 0.001}),
    ("dashboard-2024", "selecsls42b", {"training_tolerance": 0.04, "freezing_tolerance": 0.08}),
    ("dashboard-2024", "adv_inception_v3", {"training_tolerance": 0.01, "freezing_tolerance": 0.08}),
    ("dashboard-2024", "mobilevit_s", {"scaled_loss": True, "accuracy_optimizer": "sgd"}),
    ("dashboard-2024", "convit_base", {"force_amp": True, "nondeterministic": False}),
    ("dashboard-2024", "xcit_large_24_p8_224", {"force_amp": True, "nondeterministic": True, "batch_size": 16}),
    ("dashboard-2024", "hrnet_w18", {"training_optimizer": "none"}),
    ("dashboard-2024", "pnasnet5large", {"training_optimizer": "none", "batch_size": 32, "batch_divisor": 2}),
    ("dashboard-2024", "ghostnet_100", {"training_optimizer": "sgd"}),
    ("dashboard-2024", "jx_nest_base", {"batch_size": 128, "batch_divisor": 4}),
    ("dashboard-2024", "resnest101e", {"training_optimizer": "sgd", "accuracy_optimizer": None}),
    ("dashboard-2024", "visformer_small", {"skip_on": []}),
    ("dashboard-2026", "beit_base_patch16_224", {"training_tolerance": 0.16}),
    ("dashboard-2026", "deit_base_distilled_patch16_224", {"training_tolerance": 0.08}),
    ("dashboard-2026", "vit_base_patch16_siglip_256", {"training_tolerance": 0.08}),
    ("dashboard-2026", "inception_v3", {"training_tolerance": 0.04, "larger_multiplier": True}),
    ("dashboard-2026", "adv_inception_v3", {"freezing_tolerance": 0.08, "training_optimizer": "sgd"}),
    ("dashboard-2026", "mobilevit_s", {"scaled_loss": True, "accuracy_optimizer": "sgd"}),
    ("dashboard-2026", "mobilenetv2_100", {"emulate_precision_casts": True, "larger_multiplier": False}),
    ("dashboard-2026", "ghostnet_100", {"training_optimizer": "sgd", "batch_size": 512}),
    ("dashboard-2026", "visformer_small", {"skip_on": ["cpu_aarch64"]}),
    ("dashboard-2026", "vit_base_patch14_dinov2.lvd142m", {"emulate_precision_casts": True, "larger_multiplier": True}),
]


@pytest.mark.parametrize(("suite", "model", "special"), CASES, ids=[f"{suite}/{model}" for suite, model, _ in CASES])
def test_a_special_case_is_that_of_pytorchs_suite(suite, model, special):
    found = traits(suite, model)
    assert {name: getattr(found, name) for name in special} == special


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_plain_model_has_no_special_case(name):
    assert traits(name, "repvgg_a2") == Traits(batch_size=128)


def spec(suite, model, check, training):
    """A measurement of a model of a suite."""
    options = {"training": training}
    return specs.spec(check, device="cuda", model=model, options=options, traits=traits(suite, model))


@pytest.mark.parametrize("name", DASHBOARDS)
def test_the_timed_batch_is_the_suites_over_its_divisor(name):
    assert spec(name, "beit_base_patch16_224", "performance", training=False).requested_batch_size == 64


@pytest.mark.parametrize(("training", "batch_size"), [(True, 4), (False, 8)])
def test_dinov2_is_judged_with_four_images_in_training_only(training, batch_size):
    measured = spec("dashboard-2026", "vit_base_patch14_dinov2.lvd142m", "accuracy", training)
    assert measured.requested_batch_size == batch_size


def test_the_shipped_tables_use_every_column_of_the_schema():
    used = {column for name in SHIPPED for row in rows(name) for column, cell in row.items() if cell}
    assert used == set(schema("suite")["properties"])
