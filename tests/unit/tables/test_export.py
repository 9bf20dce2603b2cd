"""The files of other tools, read as those tools read them."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import pytest
import yaml

import merged
from timmgate.core.checks import CHECKS
from timmgate.core.spec import Mode
from timmgate.tables import export, parquet
from timmgate.tables.gate import baseline, judgement

CATALOGUE = yaml.safe_load((Path(__file__).parents[3] / "config" / "config.yaml").read_text())["mode_catalogue"]
MODES = {name: Mode(**options) for name, options in CATALOGUE.items()}

STATUSES = {
    "vit": "pass",
    "resnet": "fail_accuracy",
    "skipped": "pass_due_to_skip",
    "lost": "not_run",
    "huge": "model_fail_to_load",
}


def cell(mode, model, accuracy, **columns):
    ran = {"batch_size": 8, "accuracy_batch_size": 8, "parameters": 1_234_567, "input_size": [3, 240, 224]}
    known = ran if accuracy not in ("not_run", "model_fail_to_load") else {}
    row = {"device": "cpu", "mode": mode, "model": model, "requested": True, "accuracy": accuracy}
    return {**row, **known, **columns}


@pytest.fixture
def exported(tmp_path):
    """Exports cells of some modes and returns the path of every file by its name."""

    def write(*modes, cells=None, checks=("accuracy",)):
        cells = cells or [cell(mode, model, status) for mode in modes for model, status in STATUSES.items()]
        chosen = {mode: MODES[mode] for mode in modes}
        for name, contents in export.files(merged.cells(cells), chosen, checks, "cpu").items():
            write = parquet.write_json_lines if isinstance(contents, list) else parquet.write_csv
            write(contents, tmp_path / name)
        return {path.name: path for path in tmp_path.iterdir()}

    return write


@pytest.fixture
def accuracy_csv(exported):
    return exported("inference")["inductor_timm_models_float32_inference_cpu_accuracy.csv"]


# File names.


@pytest.mark.parametrize(
    ("mode", "stem"),
    [
        ("inference", "inductor_timm_models_float32_inference"),
        ("training", "inductor_timm_models_float32_training"),
        ("inference-bfloat16", "inductor_timm_models_bfloat16_inference"),
        ("training-float16", "inductor_timm_models_float16_training"),
        ("training-amp", "inductor_timm_models_amp_training"),
        ("inference-aot-eager", "aot_eager_timm_models_float32_inference"),
        ("inference-freezing", "inductor_inference-freezing_timm_models_float32_inference"),
        ("inference-amp-float16", "inductor_inference-amp-float16_timm_models_amp_inference"),
        ("training-dynamic", "inductor_training-dynamic_timm_models_float32_training"),
    ],
)
def test_a_file_is_named_by_backend_suite_dtype_and_kind_and_by_the_mode_where_it_has_other_options(mode, stem):
    assert export.stems({mode: MODES[mode]}) == {mode: stem}


def test_all_modes_of_the_catalogue_have_names_of_their_own_and_the_same_as_alone():
    stems = export.stems(MODES)
    assert len(set(stems.values())) == len(MODES)
    assert stems == {name: export.stems({name: mode})[name] for name, mode in MODES.items()}


@pytest.mark.parametrize(
    "option", [option for option in asdict(Mode()) if option not in ("backend", "precision", "training")]
)
def test_a_mode_with_any_other_option_is_not_named_like_the_mode_without(option):
    different = replace(Mode(), **{option: "something else"})
    assert export.stems({"mine": different})["mine"] != export.stems({"inference": Mode()})["inference"]


def test_two_modes_of_the_same_kind_both_have_their_names_in_the_file_names():
    assert export.stems({"one": Mode(), "two": Mode(), "three": Mode(training=True)}) == {
        "one": "inductor_one_timm_models_float32_inference",
        "two": "inductor_two_timm_models_float32_inference",
        "three": "inductor_timm_models_float32_training",
    }


def test_every_mode_has_two_files_if_only_accuracy_was_checked(exported):
    assert set(exported("inference", "training-amp")) == {
        "inductor_timm_models_float32_inference_cpu_accuracy.csv",
        "inductor_timm_models_float32_inference_cpu_accuracy.json",
        "inductor_timm_models_amp_training_cpu_accuracy.csv",
        "inductor_timm_models_amp_training_cpu_accuracy.json",
        "benchmark-infer-inference-cpu.csv",
        "benchmark-train-training-amp-cpu.csv",
    }


# benchmarks/dynamo's accuracy CSV.


def test_the_accuracy_file_has_the_reference_suites_columns_in_its_order_and_a_line_per_cell(accuracy_csv):
    assert accuracy_csv.read_text().splitlines() == [
        "dev,name,batch_size,accuracy,calls_captured,unique_graphs,fallbacks_to_eager,graph_breaks,unique_graph_breaks,"
        "autograd_captures,autograd_compiles,cudagraph_skips,compilation_latency",
        *(
            f"{cell},0,0,0,0,0,0,0,0,0.000000"
            for cell in (
                "cpu,vit,8,pass",
                "cpu,resnet,8,fail_accuracy",
                "cpu,skipped,8,pass_due_to_skip",
                "cpu,lost,0,not_run",
                "cpu,huge,0,model_fail_to_load",
            )
        ),
    ]


def test_a_cell_that_was_not_requested_is_in_no_file(exported):
    files = exported("inference", cells=[cell("inference", "vit", "pass"), cell("inference", "old", "OOM", requested=False)])
    assert len(files) == 3
    assert not any("old" in path.read_text() for path in files.values())


def test_a_file_has_the_cells_of_its_mode_only(exported):
    cells = [cell("inference", "vit", "pass"), cell("training", "vit", "OOM")]
    files = exported("inference", "training", cells=cells)
    assert files["inductor_timm_models_float32_inference_cpu_accuracy.csv"].read_text().count("\n") == 2
    assert "OOM" in files["inductor_timm_models_float32_training_cpu_accuracy.csv"].read_text()


def status_of(frame: pd.DataFrame, model: str) -> str | None:
    """The one status of a model, or None, as benchmarks/dynamo's accuracy gate looks it up."""
    found = frame.loc[frame["name"] == model, "accuracy"].tolist()
    return found[0] if len(found) == 1 and isinstance(found[0], str) else None


def reference_gate(actual: pd.DataFrame, expected: pd.DataFrame) -> dict[str, str]:
    """The verdict of benchmarks/dynamo's accuracy gate on every model of the actual file, by its rules."""
    verdicts = {}
    for model in actual["name"]:
        found, wanted = status_of(actual, model), status_of(expected, model)
        if found is None or wanted is None:
            verdicts[model] = "MISSING_ACCURACY" if found is None else "MISSING_EXPECTED"
        elif found == wanted:
            verdicts[model] = "PASS" if wanted == "pass" else "XFAIL"
        else:
            verdicts[model] = "IMPROVED" if found == "pass" else "FAIL"
    return verdicts


def test_the_reference_suites_gate_reads_the_accuracy_file(accuracy_csv):
    actual = pd.read_csv(accuracy_csv)
    expected = pd.DataFrame(
        [("vit", "pass", 0), ("resnet", "pass", 0), ("skipped", "pass_due_to_skip", 0), ("huge", "model_fail_to_load", 0)],
        columns=["name", "accuracy", "graph_breaks"],
    )
    assert reference_gate(actual, expected) == {
        "vit": "PASS",
        "resnet": "FAIL",
        "skipped": "XFAIL",
        "lost": "MISSING_EXPECTED",
        "huge": "XFAIL",
    }


def test_the_reference_suites_dashboard_reads_the_accuracy_file(accuracy_csv):
    accuracy = pd.read_csv(accuracy_csv, keep_default_na=False)
    ran = accuracy.query("batch_size > 0")
    performance = ran[["dev", "name", "batch_size"]].assign(speedup=1.5)
    joined = accuracy.merge(performance, on=["dev", "name", "batch_size"], how="left")
    passing = joined["accuracy"].isin(["pass", "pass_due_to_skip", "eager_variation"]) & (joined["speedup"] > 0)
    assert (passing.sum(), len(joined)) == (2, len(STATUSES))


def test_a_gate_with_the_exported_file_as_baseline_is_as_expected(accuracy_csv):
    rows = [cell("inference", model, status) for model, status in STATUSES.items() if model != "lost"]
    expected = baseline.read(accuracy_csv, "float32")
    del expected["lost"]
    judged = judgement.judge(merged.cells(rows), {"inference": expected}, ["accuracy"])
    assert set(judged["class"].to_pylist()) == {"pass", "expected_failure"}


# timm's benchmark CSV.


def test_timms_file_for_inference_has_its_columns_in_its_units_for_the_models_that_were_loaded(exported):
    assert exported("inference")["benchmark-infer-inference-cpu.csv"].read_text().splitlines() == [
        "model,infer_batch_size,infer_img_size,param_count",
        "vit,8,224,1.23",
        "resnet,8,224,1.23",
        "skipped,8,224,1.23",
    ]


def test_timms_file_for_training_has_its_columns(exported):
    header, line, *_ = exported("training")["benchmark-train-training-cpu.csv"].read_text().splitlines()
    assert (header, line) == ("model,train_batch_size,train_img_size,param_count", "vit,8,224,1.23")


def test_a_model_that_timed_out_before_it_was_loaded_is_left_out_of_timms_file(exported):
    cells = [cell("inference", "vit", "timeout", batch_size=None, parameters=None, input_size=None)]
    assert exported("inference", cells=cells)["benchmark-infer-inference-cpu.csv"].read_text().count("\n") == 1


# benchmarks/dynamo's performance CSV.

TIMED = {
    "performance": "pass",
    "counted": True,
    "device_name": "a processor",
    "torch": "2.14.1",
    "torch_revision": "abc",
    "fallbacks_to_eager": 1,
    "batch_size": 32,
    "speedup": 1.5,
    "compiled_ms": 20.0,
    "images_per_s": 1600.0,
    "compile_cold_s": 30.5,
    "compression_ratio": 1.25,
    "eager_peak_bytes": 2_500_000_000,
    "compiled_peak_bytes": 2_000_000_000,
    "ops_captured": 100,
    "unique_graphs": 3,
    "graph_breaks": 3,
    "graph_break_reasons": ["a", "a", "b"],
    "cudagraph_skips": 0,
    "gmacs": 4.123,
    "mactivations": 11.116,
}


@pytest.fixture
def both(exported):
    """Files of a run with both checks, of which one cell was timed."""
    failed = {"performance": "OOM"}
    cells = [cell("inference", "vit", "pass", **TIMED), cell("inference", "resnet", "pass", **failed)]
    return exported("inference", cells=cells, checks=CHECKS)


def test_the_performance_file_has_the_reference_suites_columns_in_its_order_and_units_and_zeros_for_what_failed(both):
    assert both["inductor_timm_models_float32_inference_cpu_performance.csv"].read_text().splitlines() == [
        "dev,name,batch_size,speedup,abs_latency,compilation_latency,compression_ratio,eager_peak_mem,dynamo_peak_mem,"
        "calls_captured,unique_graphs,fallbacks_to_eager,graph_breaks,unique_graph_breaks,autograd_captures,"
        "autograd_compiles,cudagraph_skips",
        "cpu,vit,32,1.500000,20.000000,30.500000,1.250000,2.500000,2.000000,100,3,1,3,2,0,0,0",
        "cpu,resnet,0,0.000000,0.000000,0.000000,0.000000,0.000000,0.000000,0,0,0,0,0,0,0,0",
    ]


def test_a_check_that_was_not_requested_has_no_file_and_no_times_though_it_was_measured_earlier(exported):
    files = exported("inference", cells=[cell("inference", "vit", "pass", **TIMED)], checks=["accuracy"])
    assert not [name for name in files if "performance" in name]
    assert "infer_samples_per_sec" not in files["benchmark-infer-inference-cpu.csv"].read_text()


def test_a_model_whose_result_is_wrong_has_zeros_as_on_the_reference_suites_dashboard(exported):
    wrong = cell("inference", "vit", "fail_accuracy", **{**TIMED, "counted": False})
    path = exported("inference", cells=[wrong], checks=CHECKS)["inductor_timm_models_float32_inference_cpu_performance.csv"]
    assert pd.read_csv(path).iloc[0][2:].tolist() == [0] * 15


@pytest.mark.parametrize(("accuracy", "counted", "speedup"), [("pass", False, 1.5), ("fail_accuracy", True, 0.0)])
def test_both_files_go_by_the_rule_of_the_reference_suite_whatever_decides_here(exported, accuracy, counted, speedup):
    files = exported("inference", cells=[cell("inference", "vit", accuracy, **{**TIMED, "counted": counted})], checks=CHECKS)
    found = {kind: files[f"inductor_timm_models_float32_inference_cpu_{kind}.csv"] for kind in ("accuracy", "performance")}
    assert pd.read_csv(found["accuracy"])["accuracy"].item() == accuracy
    assert pd.read_csv(found["performance"])["speedup"].item() == speedup


def test_the_counters_of_a_cell_are_in_the_accuracy_file_too(both):
    row = pd.read_csv(both["inductor_timm_models_float32_inference_cpu_accuracy.csv"], index_col="name").loc["vit"]
    counted = ("calls_captured", "unique_graphs", "fallbacks_to_eager", "graph_breaks", "unique_graph_breaks")
    assert [row[name] for name in counted] == [100, 3, 1, 3, 2]
    assert row["compilation_latency"] == 30.5


# The records of PyTorch's benchmark database.


@pytest.fixture
def lines(both):
    """The records of a check."""
    return lambda check: [
        json.loads(line)
        for line in both[f"inductor_timm_models_float32_inference_cpu_{check}.json"].read_text().splitlines()
    ]


def test_there_is_a_record_for_each_model_and_metric(lines, both):
    header = both["inductor_timm_models_float32_inference_cpu_performance.csv"].read_text().splitlines()[0].split(",")
    found = [(record["model"]["name"], record["metric"]["name"]) for record in lines("performance")]
    assert found == [(model, metric) for model in ("vit", "resnet") for metric in header[3:]]


def test_a_record_says_what_was_measured_of_what_and_with_what(lines):
    record = lines("performance")[0]
    assert record["metric"] == {"name": "speedup", "benchmark_values": [1.5]}
    assert record["model"] == {"name": "vit", "type": "OSS model", "backend": "inductor", "origins": ["timm_models"]}
    benchmark = record["benchmark"]
    assert (benchmark["name"], benchmark["mode"], benchmark["dtype"]) == ("TorchInductor", "inference", "float32")
    assert benchmark["extra_info"]["device"] == "cpu"
    assert set(map(type, benchmark["extra_info"].values())) == {str}
    assert record["dependencies"]["pytorch"]["version"] == "2.14.1"
    assert record["dependencies"]["pytorch"]["sha"] == "abc"
    assert record["runners"][0]["cpu_info"] == "a processor"


def test_a_status_is_no_number_and_stands_where_the_database_keeps_texts(lines):
    metrics = {
        record["metric"]["name"]: record["metric"] for record in lines("accuracy") if record["model"]["name"] == "vit"
    }
    assert metrics["accuracy"] == {"name": "accuracy", "extra_info": {"benchmark_values": ["pass"]}}
    assert metrics["graph_breaks"] == {"name": "graph_breaks", "benchmark_values": [3]}


def graph_break_reader(actual: pd.DataFrame, expected: pd.DataFrame) -> dict[str, str]:
    """What benchmarks/dynamo's reader of graph breaks finds, by its rules: a model without graphs is not compared."""
    verdicts = {}
    for row in actual.to_dict("records"):
        wanted = expected.loc[expected["name"] == row["name"]].to_dict("records")[0]
        worse = any(row[name] > wanted[name] for name in ("graph_breaks", "fallbacks_to_eager"))
        verdicts[row["name"]] = "EAGER_FAILED" if row["unique_graphs"] == 0 else "FAIL" if worse else "PASS"
    return verdicts


def test_the_reference_suites_reader_of_graph_breaks_reads_the_accuracy_file(both):
    actual = pd.read_csv(both["inductor_timm_models_float32_inference_cpu_accuracy.csv"])
    expected = actual[["name", "graph_breaks", "fallbacks_to_eager"]].assign(graph_breaks=2)
    assert graph_break_reader(actual, expected) == {"vit": "FAIL", "resnet": "EAGER_FAILED"}


def test_the_accuracy_file_has_the_accuracy_checks_own_batch_size(both):
    assert "cpu,vit,8,pass" in both["inductor_timm_models_float32_inference_cpu_accuracy.csv"].read_text()


def test_timms_file_of_a_timed_run_has_throughput_latency_and_operations(both):
    frame = pd.read_csv(both["benchmark-infer-inference-cpu.csv"], index_col="model")
    assert frame.loc["vit"].to_dict() == {
        "infer_samples_per_sec": 1600.0,
        "infer_step_time": 20.0,
        "infer_batch_size": 32,
        "infer_img_size": 224,
        "infer_gmacs": 4.12,
        "infer_macts": 11.12,
        "param_count": 1.23,
    }
    assert frame.loc["resnet"].isna()["infer_samples_per_sec"]
