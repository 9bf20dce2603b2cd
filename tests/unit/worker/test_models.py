"""Models and inputs are made as the protocol says."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import specs
from timmgate.core import names
from timmgate.core.spec import Spec
from timmgate.worker import __main__ as worker_main
from timmgate.worker import models


def spec(model: str = "test_vit", traits: dict[str, Any] | None = None, **options: Any) -> Spec:
    return specs.spec(model=model, options=options, traits=traits)


def test_random_weights_are_the_same_in_every_process_and_mode():
    hashes = {models.weights_hash(models.create(spec(training=training))) for training in (False, True, False)}
    assert len(hashes) == 1


def test_another_seed_gives_other_weights():
    other = specs.spec(seed=7)
    assert models.weights_hash(models.create(spec())) != models.weights_hash(models.create(other))


def test_the_weights_hash_sees_one_changed_element():
    model = models.create(spec())
    before = models.weights_hash(model)
    with torch.no_grad():
        model.head.bias[0] += 1
    assert models.weights_hash(model) != before


@pytest.mark.parametrize(
    ("options", "training"), [({}, False), ({"training": True}, True), ({"training": True, "use_eval_mode": True}, False)]
)
def test_train_and_eval_mode(options, training):
    assert models.create(spec(**options)).training is training


def test_drop_arguments_are_given_and_left_out_where_the_architecture_refuses_them(monkeypatch):
    calls, create_model = [], timm.create_model

    def picky(name, **arguments):
        calls.append(arguments)
        if "drop_rate" in arguments:
            raise TypeError("unexpected keyword argument 'drop_rate'")
        return create_model(name, **arguments)

    monkeypatch.setattr(timm, "create_model", picky)
    models.create(spec())
    assert calls == [
        {"in_chans": 3, "drop_rate": 0.0, "drop_path_rate": None, "drop_block_rate": None},
        {"in_chans": 3},
    ]


@pytest.mark.parametrize("name", ["test_vitt", "test_vit.no_such_tag", "resnet5O"])
def test_an_unknown_name_is_refused_with_near_matches(name):
    with pytest.raises(names.UnknownModelError, match="did you mean"):
        models.create(spec(name))


def test_a_name_with_a_tag_is_known():
    names.check_name("resnet50.a1_in1k", timm)
    names.check_name("convnextv2_small.untrained", timm)  # the suite timm has it


def test_training_and_inference_may_use_different_image_sizes():
    model = timm.create_model("nfnet_l0", pretrained=False)
    assert models.input_size(spec("nfnet_l0", training=True), model) == (3, 224, 224)
    assert models.input_size(spec("nfnet_l0"), model) == (3, 288, 288)


def test_images_are_seeded_standardised_noise():
    images = models.images(spec(batch_size=4), (3, 16, 16), 4)
    assert images.shape == (4, 3, 16, 16) and images.dtype == torch.float32
    assert images.mean().abs() < 1e-5 and (images.std() - 1).abs() < 1e-5
    assert images.unique().numel() <= 256
    torch.rand(3)
    assert torch.equal(images, models.images(spec(batch_size=4), (3, 16, 16), 4))


@pytest.mark.parametrize(
    ("check", "traits", "options", "override", "expected"),
    [
        ("accuracy", {"batch_size": 128}, {}, None, 8),
        ("accuracy", {"batch_size": 128}, {"batch_size": 4}, None, 4),
        ("accuracy", {"batch_size": 128}, {"batch_size": 4}, 2, 2),
        ("accuracy", {"training_accuracy_batch_size": 4}, {"training": True}, None, 4),
        ("accuracy", {"training_accuracy_batch_size": 4}, {}, None, 8),
        ("performance", {"batch_size": 128, "batch_divisor": 2}, {}, None, 64),
        ("performance", {"batch_size": 1, "batch_divisor": 4}, {}, None, 1),
    ],
)
def test_the_batch_size_is_the_users_else_the_modes_else_the_suites(check, traits, options, override, expected):
    made = specs.spec(check, batch_size=override, options=options, traits=traits)
    assert made.requested_batch_size == expected


@pytest.mark.parametrize(
    ("options", "force_amp", "cast", "amp"),
    [
        ({}, False, torch.float32, None),
        ({"precision": "bfloat16"}, False, torch.bfloat16, None),
        ({"precision": "float16"}, False, torch.float16, None),
        ({"precision": "amp"}, False, torch.float32, torch.bfloat16),
        ({"precision": "amp", "amp_dtype": "float16"}, False, torch.float32, torch.float16),
        ({"precision": "float16"}, True, torch.float32, torch.float16),
        ({"precision": "bfloat16"}, True, torch.float32, torch.bfloat16),
        ({}, True, torch.float32, None),
    ],
)
def test_precision_casts_or_autocasts_and_force_amp_keeps_the_dtype(options, force_amp, cast, amp):
    made = spec(traits={"force_amp": force_amp}, **options)
    assert (models.cast_dtype(made), models.amp_dtype(made)) == (cast, amp)


def test_autocast_is_off_for_the_float64_reference():
    made = spec(precision="amp")
    for dtype, expected in ((torch.float32, torch.bfloat16), (torch.float64, torch.float64)):
        layer, images = torch.nn.Linear(4, 4, dtype=dtype), torch.ones(1, 4, dtype=dtype)
        with models.autocast(made, images):
            assert layer(images).dtype == expected


def test_channels_last_reaches_weights_and_images():
    made = spec("test_resnet", channels_last=True)
    assert models.images(made, (3, 32, 32), 2).is_contiguous(memory_format=torch.channels_last)
    weight = models.create(made).layer1[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_a_pickle_from_outside_runs_no_code(tmp_path, monkeypatch):
    class Exploit:
        def __reduce__(self):
            return Path.touch, (tmp_path / "pwned",)

    torch.save({"state_dict": Exploit()}, tmp_path / "weights.pth")
    monkeypatch.setattr(os, "environ", os.environ.copy())
    worker_main.set_environment(1, tmp_path)
    assert os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "1"
    with pytest.raises(Exception, match=r"weights_only|Weights only"):
        models.create(replace(spec(), weights="pretrained"), tmp_path / "weights.pth")
    with pytest.raises(Exception, match=r"weights_only|Weights only"):
        torch.load(tmp_path / "weights.pth", weights_only=False)
    assert not (tmp_path / "pwned").exists()
