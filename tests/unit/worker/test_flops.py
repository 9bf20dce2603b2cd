"""Operations and activations of models whose numbers are known."""

import pytest
import timm
import torch

from timmgate.worker import flops


@pytest.mark.parametrize(
    ("model", "gmacs", "mactivations"),
    [("resnet18", 1.82, 2.48), ("mobilenetv2_100", 0.3, 6.68), ("vit_tiny_patch16_224", 1.26, 5.97)],
)
def test_the_counts_are_those_of_timms_published_table(model, gmacs, mactivations):
    """timm's results/model_metadata-in1k.csv and its model cards, which count by fvcore."""
    counted = flops.count(timm.create_model(model), torch.zeros(1, 3, 224, 224))
    assert counted["gmacs"] == pytest.approx(gmacs, rel=0.02)
    assert counted["mactivations"] == pytest.approx(mactivations, rel=0.02)


def test_pooling_by_attention_is_counted():
    assert flops.count(timm.create_model("test_vit3"), torch.zeros(1, 3, 160, 160))["gmacs"] > 0


def test_counting_leaves_modules_parameters_and_statistics_as_they_are():
    model = timm.create_model("test_resnet").train()
    model.bn1.eval()
    model.conv1.requires_grad_(False)
    learned = [parameter.requires_grad for parameter in model.parameters()]
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    flops.count(model, torch.randn(1, 3, 96, 96))
    assert model.training and not model.bn1.training
    assert [parameter.requires_grad for parameter in model.parameters()] == learned
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())


def test_a_model_that_cannot_be_counted_has_no_counts():
    def refuse(images):
        raise RuntimeError("no")

    model = torch.nn.Identity()
    model.forward = refuse
    assert flops.count(model, torch.zeros(1)) == {}
