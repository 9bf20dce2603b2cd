"""What is wrong with a request is said in a sentence, by the environment and on the device that would measure."""

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from timmgate import module_environment
from timmgate.core.preflight import Answer, Question
from timmgate.core.spec import Mode
from timmgate.worker import compile_cache, preflight


def question(device: str = "cpu", models: tuple[str, ...] = (), toolchain: Path | None = None, **options) -> Question:
    modes = {"mine": Mode(**{"backend": "eager", **options})}
    return Question(
        device=device, modes=modes, models=models, software="digest", answer=Path("answer.json"), toolchain=toolchain
    )


def test_a_request_that_is_possible_has_no_problems():
    assert list(preflight.answer(question(models=("test_vit", "resnet50.a1_in1k"))).problems) == []


@pytest.mark.parametrize("backend", ["nothing", "aot_eager", "fault:drop-skip@first", "fault:exit"])
def test_backends_of_ours_are_possible(backend):
    assert list(preflight.answer(question(backend=backend)).problems) == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"backend": "fault:drop-skp"}, "mode 'mine': there is no fault 'drop-skp'; did you mean drop-skip"),
        ({"backend": "inductr"}, "mode 'mine': there is no backend 'inductr'; did you mean inductor"),
        ({"backend": "cudagraphs"}, "mode 'mine': CUDA graphs need device cuda, this is cpu"),
        ({"cudagraphs": True}, "mode 'mine': CUDA graphs need device cuda, this is cpu"),
        ({"inductor_config": {"max_autotunee": True}}, "mode 'mine': no inductor option 'max_autotunee'; did you mean"),
        (
            {"inductor_config": {"max_autotune": 7}},
            "mode 'mine': inductor option 'max_autotune' is 7; it must be of the type",
        ),
    ],
)
def test_what_a_mode_cannot_have_is_one_sentence_with_the_modes_name(options, sentence):
    (problem,) = preflight.answer(question(**options)).problems
    assert problem.startswith(sentence) and "\n" not in problem


def test_a_torch_compile_that_is_switched_off_is_told(monkeypatch):
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    (problem,) = preflight.answer(question()).problems
    assert problem.startswith("torch.compile is switched off and would compile nothing; unset TORCHDYNAMO_DISABLE")
    assert preflight.answer(question(backend="nothing")).problems == []


def test_every_mode_and_every_model_is_told():
    asked = question(models=("test_vitt", "test_vit", "resnet5O"))
    modes = {"a": Mode(backend="inductr"), "b": Mode(backend="eager"), "c": Mode(backend="egar")}
    problems = list(preflight.mode_problems(Question(**{**vars(asked), "modes": modes})))
    problems += preflight.model_problems(asked).values()
    assert [problem.split(":")[0] for problem in problems] == ["mode 'a'", "mode 'c'", "models", "models"]
    assert "no model 'test_vitt'; did you mean test_vit" in problems[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this device answers")
def test_a_device_that_does_not_answer_is_one_sentence_and_nothing_else_is_asked():
    (problem,) = preflight.answer(question(device="cuda", backend="inductr")).problems
    assert problem.startswith("device: cuda does not answer (") and problem.endswith("); this machine has cpu")
    assert "\n" not in problem


@pytest.mark.parametrize("works", [False, True])
def test_a_triton_that_does_not_work_is_told_where_inductor_needs_it(works, monkeypatch):
    """As in a container without a C compiler."""

    class Driver:
        class active:
            def get_current_target():
                if not works:
                    raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")

    runtime = ModuleType("triton.runtime")
    runtime.driver = Driver
    monkeypatch.setitem(sys.modules, "triton", ModuleType("triton"))
    monkeypatch.setitem(sys.modules, "triton.runtime", runtime)
    problems = list(preflight.mode_problems(question(device="cuda", backend="inductor")))
    assert [problem.split(" (")[0] for problem in problems] == (
        [] if works else ["triton does not work on cuda, and inductor needs it"]
    )
    assert list(preflight.mode_problems(question(device="cuda", backend="eager"))) == []


def test_photos_that_a_build_lacks_are_told(monkeypatch):
    monkeypatch.setattr(preflight.packages, "is_installed", lambda package: False)
    (problem,) = preflight.answer(replace(question(), packages=["scikit-image"])).problems
    assert problem.startswith("weights: with packaged ones models see photos of scikit-image, which ")


def test_a_backend_whose_package_cannot_be_imported_is_told(monkeypatch):
    class Broken:
        def load(self):
            raise ImportError("libacme.so: cannot open shared object file")

    monkeypatch.setitem(torch._dynamo.backends.registry._BACKENDS, "acme", Broken())
    (problem,) = preflight.answer(question(backend="acme")).problems
    assert (
        problem
        == "mode 'mine': the backend 'acme' cannot be imported (ImportError: libacme.so: cannot open shared object file)"
    )


def test_a_missing_compiler_is_told_where_inductor_needs_one(monkeypatch):
    def missing():
        raise RuntimeError("No working C++ compiler found in torch._inductor.config.cpp.cxx")

    monkeypatch.setattr(preflight, "get_cpp_compiler", missing)
    (problem,) = preflight.answer(question(backend="inductor")).problems
    assert problem.startswith("there is no C++ compiler that works") and problem.endswith("install g++, or set CXX")
    assert preflight.answer(question(backend="eager")).problems == []


def test_the_toolchain_is_built_where_inductor_is_used_and_its_failure_is_not_the_requests(tmp_path, monkeypatch):
    asked = []

    def build(folder, device, software):
        asked.append((folder, device, software))
        raise RuntimeError("the compiler crashed")

    monkeypatch.setattr(compile_cache, "fill_toolchain", build)
    preflight.build_toolchain(question(toolchain=tmp_path))
    assert asked == []
    preflight.build_toolchain(question(toolchain=tmp_path, backend="inductor"))
    assert asked == [(tmp_path, "cpu", "digest")]


CRASHES = """
import os, pathlib, signal, sys
from timmgate.core.preflight import Question
from timmgate.worker import __main__, compile_cache
compile_cache.fill_toolchain = lambda *_: os.kill(os.getpid(), signal.SIGSEGV)
__main__.preflight(Question.from_json(sys.argv[1]))
"""


def test_a_compiler_that_crashes_on_the_simplest_program_does_so_after_the_answer(tmp_path):
    asked = replace(question(toolchain=tmp_path / "toolchain", backend="inductor"), answer=tmp_path / "answer.json")
    done = subprocess.run([sys.executable, "-c", CRASHES, asked.to_json()], env=module_environment())
    assert done.returncode == -signal.SIGSEGV
    assert Answer.from_json((tmp_path / "answer.json").read_text()).problems == []
