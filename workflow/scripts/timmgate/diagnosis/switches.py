"""Settings of inductor that take one thing out of it each, in the order in which they are tried."""

from collections.abc import Mapping
from typing import Any

from timmgate.core.diagnosis import Variant

WHOLE_STAGES: dict[str, Mapping[str, Any]] = {
    "post_grad": {"use_post_grad_passes": False},
    "joint_graph": {"use_joint_graph_passes": False},
    "pre_grad": {"use_pre_grad_passes": False},
}
"""By layer, what leaves out all of its passes."""


def _variants(settings: Mapping[str, Mapping[str, Any]]) -> tuple[Variant, ...]:
    return tuple(Variant(name, settings=each) for name, each in settings.items())


CODE_GENERATION = _variants(
    {
        "without vectors": {"cpp.simdlen": 1},
        "without fusion": {"max_fusion_size": 1, "epilogue_fusion": False},
        "without reuse of buffers": {"allow_buffer_reuse": False, "inplace_buffers": False},
        "without fast arithmetic": {
            "cpp.enable_floating_point_contract_flag": "off",
            "cpp.enable_unsafe_math_opt_flag": False,
        },
    }
)
"""Where loops are right and their code is not."""

PASSES = _variants(
    {
        "without patterns": {"pattern_matcher": False},
        "without another memory layout": {"layout_optimization": False, "comprehensive_padding": False},
        "rounding where eager rounds": {"emulate_precision_casts": True},
        "with eager's random numbers": {"fallback_random": True},
        "without reordering": {"reorder_for_locality": False, "reorder_for_peak_memory": False},
        "without folding of constants": {"joint_graph_constant_folding": False},
        "without reuse of buffers": {"allow_buffer_reuse": False, "inplace_buffers": False},
    }
)
"""Where neither lowerings nor a stage of passes explains it."""
