"""Configuration: what the command line hands over becomes typed values; what cannot be meant is refused in one sentence."""

import copy
import math
from functools import cache
from pathlib import Path

import hypothesis
import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st
from snakemake.cli import parse_config
from snakemake.utils import update_config

from timmgate.config import validation
from timmgate.config.settings import load
from timmgate.core.build import BuildOptions
from timmgate.core.errors import ConfigError, did_you_mean
from timmgate.core.spec import Mode
from timmgate.system import cpu_topology

CONFIG = Path(__file__).parents[3] / "config" / "config.yaml"


@cache
def default_config():
    return yaml.safe_load(CONFIG.read_text())


def config(**changes):
    """The default configuration with some keys changed; a nested mapping is merged, as by Snakemake."""
    values = copy.deepcopy(default_config())
    update_config(values, changes)
    return values


def command_line(*entries):
    """The default configuration after `--config ENTRIES`, as Snakemake hands it over."""
    return config(**parse_config(entries))


def refusal(values):
    with pytest.raises(ConfigError) as refused:
        load(values)
    return str(refused.value)


def test_the_default_configuration_is_valid():
    loaded = load(default_config())
    assert (loaded.device, loaded.suite, loaded.weights) == ("cpu", "tiny", "random")
    assert list(loaded.modes) == default_config()["modes"]


def test_loading_leaves_the_configuration_alone():
    values = command_line("models=a,b", "mode_catalogue={mine: {training: true}}", "inductor_config={freezing: true}")
    before = copy.deepcopy(values)
    load(values)
    assert values == before


@pytest.mark.parametrize(
    ("entry", "key", "expected"),
    [
        ("threads=4", "threads", 4),
        ("threads=4.0", "threads", 4),
        ("threads=auto", "threads", 1),
        ("allocator=system", "allocator", "system"),
        ("relocate=false", "relocate", False),
        ("timeout=90", "timeout", 90),
        ("batch_size=3", "batch_size", 3),
        ("batch_size=null", "batch_size", None),
        ("batch_size=None", "batch_size", None),
        ("batch_size=", "batch_size", None),
        ("models=test_vit", "models", ("test_vit",)),
        ("models=test_vit, test_res*", "models", ("test_vit", "test_res*")),
        ("models=[test_vit, test_res*]", "models", ("test_vit", "test_res*")),
        ("models=test_vit,", "models", ("test_vit",)),
        ("models=", "models", ()),
        ("models=7", "models", ("7",)),
        ("exclude=", "exclude", ()),
        ("suite=2026", "suite", "2026"),
        ("checks=accuracy,accuracy", "checks", ("accuracy",)),
        ("device=cuda", "device", "cuda"),
    ],
)
def test_a_command_line_text_gets_the_type_of_its_key(entry, key, expected):
    loaded = load(command_line(entry))
    value = getattr(loaded.run if hasattr(loaded.run, key) else loaded, key)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("text", "option", "expected"),
    [
        ("{training: true}", "training", True),
        ("{training: TRUE}", "training", True),
        ("{training: false}", "training", False),
        ("{precision: amp, amp_dtype: float16}", "amp_dtype", "float16"),
        ("{precision: amp, amp_dtype: null}", "amp_dtype", None),
        ("{training: true, optimizer: none}", "optimizer", "none"),
        ("{batch_size: 16}", "batch_size", 16),
        ("{batch_size: ~}", "batch_size", None),
        ("{backend: eager}", "backend", "eager"),
    ],
)
def test_the_options_of_a_mode_from_the_command_line_are_typed(text, option, expected):
    mode = load(command_line(f"mode_catalogue={{mine: {text}}}", "modes=mine")).modes["mine"]
    assert getattr(mode, option) == expected
    assert type(getattr(mode, option)) is type(expected)


def test_threads_of_a_compiler_follow_the_cores_and_the_devices_there_are():
    entries = command_line("device=cuda", "jobs_per_gpu=1")
    assert load(entries, cores=24, devices={"cuda": 3}.__getitem__).run.threads == 8
    assert load(command_line("device=cpu"), cores=24, devices=pytest.fail).run.threads == 1


def test_the_file_for_the_conditions_of_benchmarks_dynamo_is_read(monkeypatch):
    monkeypatch.setattr(cpu_topology, "available", lambda: [0, 1, 2])
    loaded = load(config(**yaml.safe_load((CONFIG.parent / "like-dynamo.yaml").read_text())))
    assert (loaded.run.threads, loaded.allocator, loaded.relocate) == (3, "system", False)
    assert (loaded.weights, loaded.run.accuracy_rule) == ("random-timm", "dynamo")


def test_a_mode_without_options_has_the_defaults():
    assert load(command_line("mode_catalogue={mine: {}}", "modes=mine")).modes["mine"] == Mode()
    assert load(config(mode_catalogue={"mine": None}, modes=["mine"])).modes["mine"] == Mode()


def test_inductor_options_have_the_types_that_they_say_at_every_depth():
    text = "{a: true, b: 2, c: 0.5, d: null, e: ATEN, f: [1, x], g: {h: false}}"
    (mode,) = load(command_line(f"inductor_config={text}", "modes=inference")).modes.values()
    assert mode.inductor_config == yaml.safe_load(text)


@pytest.mark.parametrize("text", ["2026-08-21", "a: b: c", "[", "x", "off", "no", "12.10", "1:30", "010", "NaN", "[1]"])
def test_an_inductor_option_that_can_say_something_else_stays_text(text):
    (mode,) = load(config(inductor_config={"key": text}, modes=["inference"])).modes.values()
    assert mode.inductor_config == {"key": text}


def test_a_mode_overrides_single_inductor_options_of_all_modes():
    values = config(
        modes=["mine", "inference"],
        inductor_config={"a": 1, "b": 1},
        mode_catalogue={"mine": {"inductor_config": {"b": 2, "c": 2}}},
    )
    modes = load(values).modes
    assert modes["mine"].inductor_config == {"a": 1, "b": 2, "c": 2}
    assert modes["inference"].inductor_config == {"a": 1, "b": 1}


def test_a_build_overrides_single_inductor_options_of_all_modes_and_a_mode_those_of_the_build():
    loaded = load(
        config(
            builds=["tuned", "default"],
            build_catalogue={"tuned": {"inductor_config": {"b": 2, "c": 2}}},
            modes=["mine"],
            inductor_config={"a": 1, "b": 1, "c": 1},
            mode_catalogue={"mine": {"inductor_config": {"c": 3}}},
        )
    )
    assert loaded.catalogue["tuned"]["mine"].inductor_config == {"a": 1, "b": 2, "c": 3}
    assert loaded.catalogue["default"]["mine"].inductor_config == {"a": 1, "b": 1, "c": 3}
    assert list(loaded.catalogue) == ["tuned", "default"]


def test_a_build_of_the_command_line_has_typed_values():
    entry = "build_catalogue={mine: {python: /x/python, env: {LEVEL: 3}, import: acme, inductor_config: {a: true, b: 2}}}"
    loaded = load(command_line(entry, "builds=mine"))
    assert loaded.builds == {"mine": BuildOptions("/x/python", {"LEVEL": "3"}, {"a": True, "b": 2}, ["acme"])}
    assert load(config(build_catalogue={"mine": None}, builds=["mine"])).builds == {"mine": BuildOptions()}
    assert load(config(build_catalogue={"2.9.1": {"env": {"A": 1}}}, builds=["2.9.1"])).builds["2.9.1"].env == {"A": "1"}


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        (["builds=nightly"], "builds: there is no build 'nightly'; known are default"),
        (["build_catalogue={nightly: {}}", "builds=nightli"], "builds: there is no build 'nightli'; did you mean nightly?"),
        (["builds="], "config: builds is []; it must not be empty"),
        (
            ["build_catalogue={Nightly: {}}"],
            "config: build_catalogue: 'Nightly' must be a label of small letters, digits,",
        ),
        (["build_catalogue={'../x': {}}"], "config: build_catalogue: '../x' must be a label"),
        (["build_catalogue={x: {pyton: a}}"], "config: unknown key 'pyton' in build_catalogue.x; did you mean python?"),
        (["build_catalogue={x: python}"], "config: build_catalogue.x is 'python'; it must be a mapping of keys to values"),
        (
            ["build_catalogue={x: {env: A=1}}"],
            "config: build_catalogue.x.env is 'A=1'; it must be a mapping of keys to values",
        ),
        (["build_catalogue={x: {import: a-b}}"], "config: build_catalogue.x.import.0: 'a-b' must be the name of a module"),
        *(
            (
                [f"build_catalogue={{{label}: {{}}}}", f"builds={label}"],
                f"build '{label}': results/{{device}}/{label} is something",
            )
            for label in ("export", "pairs", "confirm", "cells.parquet", "failures.tsv", "outcome.json")
        ),
        (
            ["build_catalogue={x: {env: {OMP_NUM_THREADS: 4}}}", "builds=x"],
            "build 'x': OMP_NUM_THREADS in env has no effect, as it is set by the key threads",
        ),
        (
            ["build_catalogue={x: {env: {CUDA_VISIBLE_DEVICES: 4}}}", "builds=x"],
            "build 'x': CUDA_VISIBLE_DEVICES in env has no effect, as it is set by the lock of the GPU; set it",
        ),
        (["build_catalogue={x: {env: {'A=B': 4}}}", "builds=x"], "build 'x': 'A=B' in env cannot be a variable"),
    ],
)
def test_a_build_that_cannot_be_meant_is_one_sentence(entries, sentence):
    assert refusal(command_line(*entries)).startswith(sentence)


@pytest.mark.parametrize("device", ["cpu", "hpu", "privateuseone", "acme_2"])
def test_a_device_may_be_of_any_type(device):
    assert load(config(device=device)).device == device


def test_a_mode_may_have_a_number_as_its_name():
    assert list(load(config(mode_catalogue={16: {"precision": "float16"}}, modes=[16])).modes) == ["16"]


def test_modes_are_in_the_order_asked_for_and_once_each():
    assert list(load(command_line("modes=training,inference,training")).modes) == ["training", "inference"]


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ("devise=cuda", "config: unknown key 'devise'; did you mean device?"),
        ("device=cuda:1", "config: device: 'cuda:1' must be a torch device type, without a number"),
        ("device=../cpu", "config: device: '../cpu' must be a torch device type, without a number"),
        ("checks=acuracy", "config: checks.0 is 'acuracy'; it must be one of"),
        ("compile_cache=none", "config: compile_cache is 'none'; it must be one of cell, shared"),
        ("threads=two", "config: threads is 'two'; it must be a whole number, or auto or all"),
        ("threads=1.5", "config: threads is 1.5; it must be a whole number"),
        ("threads=True", "config: threads is True; it must be a whole number"),
        ("allocator=jemalloc", "config: allocator is 'jemalloc'; it must be one of retain, system"),
        ("relocate=maybe", "config: relocate is 'maybe'; it must be true or false"),
        ("threads=0", "config: threads is 0; it must be at least 1"),
        ("timeout=0.5", "config: timeout is 0.5; it must be a whole number"),
        ("timeout=inf", "config: timeout is 'inf'; it must be a whole number"),
        ("batch_size=0", "config: batch_size is 0; it must be at least 1"),
        ("batch_size=big", "config: batch_size is 'big'; it must be a whole number or null"),
        ("suite=", "config: suite is None; it must be a text"),
        ("models={a: b}", "config: models.0 is {'a': 'b'}; it must be a text"),
        ("modes=", "config: modes is []; it must not be empty"),
        ("modes=,", "config: modes is []; it must not be empty"),
        ("retry=timeouts", "config: retry.0 is 'timeouts'; it must be one of failed, fail_accuracy"),
        ("modes=infrence", "modes: there is no mode 'infrence'; did you mean inference"),
        ("inductor_config=freezing", "config: inductor_config is 'freezing'; it must be a mapping of keys to values"),
        ("mode_catalogue={x: eager}", "config: mode_catalogue.x is 'eager'; it must be a mapping of keys to values"),
        (
            "mode_catalogue={x: {trainng: true}}",
            "config: unknown key 'trainng' in mode_catalogue.x; did you mean training?",
        ),
        (
            "mode_catalogue={x: {training: maybe}}",
            "config: mode_catalogue.x.training is 'maybe'; it must be true or false",
        ),
        (
            "mode_catalogue={x: {precision: half}}",
            "config: mode_catalogue.x.precision is 'half'; it must be one of float32, bfloat16, float16, amp",
        ),
        (
            "mode_catalogue={x: {amp_dtype: half}}",
            "config: mode_catalogue.x.amp_dtype is 'half'; it must be one of bfloat16, float16, null",
        ),
        (
            "mode_catalogue={x: {inductor_config: freezing}}",
            "config: mode_catalogue.x.inductor_config is 'freezing'; it must be a mapping of keys to values",
        ),
        ("mode_catalogue={../x: {}}", "config: mode_catalogue: '../x' must be a name of letters, digits,"),
        ("history_path=kept-{device}", "history_path: 'kept-{device}' has a brace, which Snakemake takes for a wildcard"),
        ("shard=1-2", "config: shard: '1-2' must be part/parts, as in 3/8"),
    ],
)
def test_a_wrong_value_is_refused_in_one_sentence_that_says_what_would_be_right(entry, sentence):
    message = refusal(command_line(entry))
    assert message.startswith(sentence)
    assert "\n" not in message


def test_an_unknown_mode_without_near_match_is_told_the_known_ones():
    values = config()
    values["mode_catalogue"] = {"slow": {}, "fast": {}}
    values["modes"] = ["inference"]
    assert refusal(values) == "modes: there is no mode 'inference'; known are slow, fast"


def test_a_missing_key_is_named():
    values = config()
    del values["threads"]
    assert refusal(values) == "config: the key 'threads' is missing"


def test_an_empty_catalogue_is_refused():
    assert refusal({**config(), "mode_catalogue": {}}) == "config: mode_catalogue is {}; it must not be empty"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"freezing": True, "training": True}, "freezing works at inference only"),
        ({"amp_dtype": "float16"}, "amp_dtype needs precision: amp, not float32"),
        ({"amp_dtype": "float16", "precision": "float16"}, "amp_dtype needs precision: amp, not float16"),
        ({"use_eval_mode": True}, "use_eval_mode is an option of training"),
        ({"optimizer": "sgd"}, "optimizer: sgd is an option of training"),
        ({"backend": "eager", "compile_mode": "max-autotune"}, "compile_mode belongs to the inductor backend, not to eager"),
    ],
)
def test_options_that_contradict_each_other_are_refused_when_the_mode_is_asked_for(options, sentence):
    catalogue = {"mine": options}
    message = refusal(config(mode_catalogue=catalogue, modes=["inference", "mine"]))
    assert message.startswith(f"mode 'mine': {sentence}")
    load(config(mode_catalogue=catalogue, modes=["inference"]))


def test_near_matches_are_offered_best_first_and_at_most_three():
    known = ["inference", "inference-amp", "inference-eager", "inference-dynamic", "training"]
    assert did_you_mean("inferenc", known).startswith("; did you mean inference or ")
    assert did_you_mean("inferenc", known).count(" or ") == 2


def test_a_long_list_of_known_words_is_not_recited():
    assert did_you_mean("x", [f"model{number}" for number in range(1000)]) == ""


# Texts that are nothing else.
NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9._-]{0,8}", fullmatch=True).filter(
    lambda name: name.lower() not in ("null", "none", "true", "false", "nan", "inf", "infinity")
)
PLAIN = st.one_of(st.booleans(), st.none(), st.integers(-(2**40), 2**40), NAMES)
FREE = st.dictionaries(NAMES, st.one_of(PLAIN, st.lists(PLAIN, max_size=3)), max_size=3)


def values_of(rule):
    """Values that a property of the schema allows."""
    if "enum" in rule:
        return st.sampled_from(rule["enum"])
    if isinstance(rule["type"], list):
        return st.one_of(values_of({**rule, "type": type_}) for type_ in rule["type"])
    match rule["type"]:
        case "array":
            return st.lists(values_of(rule["items"]), min_size=rule.get("minItems", 0), max_size=4)
        case "string":
            return st.from_regex(rule["pattern"].replace("$", r"\Z")) if "pattern" in rule else NAMES
        case "object" if "additionalProperties" in rule:
            return st.dictionaries(NAMES, values_of(rule["additionalProperties"]), max_size=3)
        case "object":
            return FREE
        case "number":
            return st.floats(1, 1e6)
        case type_:
            eighths = st.integers(0, 1000).map(lambda number: number / 8)
            simple = {"boolean": st.booleans(), "null": st.none(), "integer": st.integers(1, 10**6), "number": eighths}
            return simple[type_]


def mappings(properties):
    return st.fixed_dictionaries({}, optional={name: values_of(rule) for name, rule in properties.items()})


CATALOGUED = ("modes", "mode_catalogue", "builds", "build_catalogue", "device")
"""Keys whose values depend on one another, or are of a pattern."""


@st.composite
def configurations(draw):
    """Changes of the default configuration that are valid: the catalogue may have modes that nobody could ask for."""
    schema = validation.schema("config")
    simple = {key: rule for key, rule in schema["properties"].items() if key not in CATALOGUED}
    changes = draw(mappings(simple))
    catalogue = draw(st.dictionaries(NAMES, mappings(schema["$defs"]["mode"]["properties"]), max_size=3))
    possible = ["inference", *(name for name in catalogue if is_possible(name, catalogue))]
    modes = draw(st.permutations(possible))
    device = draw(st.sampled_from(["cpu", "cuda", "xpu", "hpu"]))
    builds = draw(
        st.dictionaries(st.sampled_from(["a", "b-1.2"]), mappings(schema["$defs"]["build"]["properties"]), max_size=2)
    )
    labels = draw(st.permutations(["default", *builds]))
    catalogues = {"mode_catalogue": catalogue, "build_catalogue": builds}
    return {**changes, **catalogues, "device": device, "modes": modes, "builds": labels}


def is_possible(mode, catalogue):
    try:
        load(config(mode_catalogue=catalogue, modes=[mode]))
    except ConfigError:
        return False
    return True


def as_text(value, data):
    """How a person writes a value after `--config key=`."""
    if isinstance(value, list):
        items = [as_text(item, data) for item in value]
        return ",".join(items) if data.draw(st.booleans()) else f"[{', '.join(items)}]"
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=math.inf)
    return text.removesuffix("...\n").strip()


@hypothesis.settings(max_examples=30, deadline=None)
@given(configurations(), st.data())
def test_a_configuration_loads_the_same_from_a_file_and_from_the_command_line(changes, data):
    try:
        from_file = load(config(**changes))
    except ConfigError:
        assume(False)
    from_command_line = load(command_line(*(f"{key}={as_text(value, data)}" for key, value in changes.items())))
    assert from_command_line == from_file
    assert repr(from_command_line) == repr(from_file)  # 1, 1.0 and True are equal, but not the same identity


@pytest.mark.parametrize(
    ("changes", "suite", "weights"),
    [
        ({}, "tiny", "random"),
        ({"device": "cuda"}, "dashboard-2024", "pretrained"),
        ({"device": "cuda", "weights": "random"}, "dashboard-2024", "random"),
        ({"device": "cuda", "suite": "tiny"}, "tiny", "random"),
        ({"suite": "packaged"}, "packaged", "packaged"),
    ],
)
def test_auto_follows_the_device_and_the_suite(changes, suite, weights):
    loaded = load(config(**changes))
    assert (loaded.suite, loaded.weights) == (suite, weights)


def test_a_home_folder_is_found_wherever_a_path_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    build = {"tree": {"env": {"PYTHONPATH": "~/pytorch:/opt/x", "WORD": "a~b"}}}
    found = load(config(history_path="~/history", build_catalogue=build, builds="tree"))
    assert found.history_path == str(tmp_path / "history")
    assert found.builds["tree"].env == {"PYTHONPATH": f"{tmp_path}/pytorch:/opt/x", "WORD": "a~b"}


@pytest.mark.parametrize("suite", ["dashboard-mine.tsv", "dashboards/all.tsv"])
def test_a_table_of_ones_own_has_random_weights_whatever_it_is_called(suite):
    assert load(config(suite=suite)).weights == "random"
