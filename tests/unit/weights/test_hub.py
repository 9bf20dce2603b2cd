"""Pretrained weights come out of the cache or off the hub, whatever the network does; what is wrong is said clearly."""

import dataclasses
import errno
import hashlib
import itertools
import json
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from huggingface_hub import constants

import specs
from fake_hub import COMMIT, FakeHub
from timmgate import module_environment
from timmgate.core.spec import Spec
from timmgate.weights import hub as pretrained
from timmgate.weights import record
from timmgate.worker import models

MODEL = "test_vit"
FILE = "timm/test_vit.r160_in1k/model.safetensors"
OLD_FILE = "timm/test_vit.r160_in1k/pytorch_model.bin"
CONTENT = b"not really a state dict" * 1000
CHUNK_BYTES = 1024
PATIENCE_S = 180.0

SHORTEST_PAUSE_S = 0.9
"""Pauses below it are those of locks and threads, not those between two attempts."""

FETCH = """
import sys
from pathlib import Path
from huggingface_hub import constants
from timmgate.weights import record

constants.DOWNLOAD_CHUNK_SIZE = int(sys.argv[2])
print(record.obtain(sys.argv[1], "pretrained", Path()).file)
"""


def spec(model: str = MODEL, source: str = "pretrained", **options) -> Spec:
    return specs.spec(model=model, weights=source, options=options)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The only hub that timm and its hub client know, and empty caches; files are written in small pieces."""
    with FakeHub({FILE: CONTENT}) as hub:
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", CHUNK_BYTES)
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
        yield hub


@pytest.fixture
def pauses(monkeypatch) -> list[float]:
    """How long everybody wanted to sleep; nobody does for long."""
    asked, sleep = [], time.sleep

    def nap(seconds: float) -> None:
        if seconds >= SHORTEST_PAUSE_S:
            asked.append(seconds)
        sleep(min(seconds, 0.01))

    monkeypatch.setattr(time, "sleep", nap)
    return asked


@pytest.fixture
def obtain(hub, pauses, tmp_path):
    """Obtain pretrained weights of a model."""
    return lambda model=MODEL: record.obtain(model, "pretrained", tmp_path)


@pytest.fixture
def plain_address(hub, monkeypatch):
    """Make timm look for the model's file at a plain address of the server; returns the address."""

    def make(name: str, content: bytes = CONTENT) -> str:
        hub.files = {name: content}
        config = dataclasses.replace(timm.get_pretrained_cfg(MODEL), hf_hub_id=None, url=f"{hub.url}/{name}")
        monkeypatch.setattr(pretrained, "get_pretrained_cfg", lambda _: config)
        return config.url

    return make


def complete_files(folder: Path) -> list[str]:
    """What looks like a file of weights to timm and its hub client."""
    snapshots = [path for path in folder.glob("hub/models--*/snapshots/*/*") if path.exists()]
    blobs = [path for path in folder.glob("hub/models--*/blobs/*") if path.suffix != ".incomplete"]
    checkpoints = [path for path in folder.glob("torch/hub/checkpoints/*") if not path.name.startswith(".")]
    return [path.name for path in (*snapshots, *blobs, *checkpoints)]


# --- what goes well


def test_a_file_is_fetched_once_with_its_checksum_and_origin(hub, obtain):
    found = obtain()
    assert found.error is None
    assert Path(found.file).read_bytes() == CONTENT and Path(found.file).is_absolute()
    assert found.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert (found.bytes, found.attempts) == (len(CONTENT), 1)
    assert found.origin == f"timm/test_vit.r160_in1k@{COMMIT}/model.safetensors"
    assert (hub.count("HEAD"), hub.count("GET")) == (1, 1)


def test_a_warm_cache_needs_no_request_and_no_server(hub, obtain):
    first = obtain()
    hub.requests.clear()
    assert obtain() == dataclasses.replace(first, seconds=pytest.approx(0, abs=5))
    assert hub.requests == []


def test_without_safetensors_the_older_file_is_taken_and_found_again_in_the_cache(hub, obtain):
    hub.files = {OLD_FILE: CONTENT}
    assert Path(obtain().file).name == "pytorch_model.bin"
    hub.requests.clear()
    assert Path(obtain().file).name == "pytorch_model.bin"
    assert hub.requests == []


def test_offline_mode_is_honoured(hub, obtain, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert obtain().error["cause"] == "OfflineModeIsEnabled"
    assert hub.requests == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    obtain()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert obtain().error is None


def test_a_plain_address_is_fetched_into_timms_own_cache(hub, obtain, plain_address, tmp_path):
    url = plain_address(f"vit-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth")
    found = obtain()
    assert (found.origin, found.attempts) == (url, 1)
    assert Path(found.file).parent == tmp_path / "torch" / "hub" / "checkpoints"
    obtain()
    assert hub.count("GET") == 1


def test_a_name_with_a_short_number_promises_no_checksum(obtain, plain_address):
    plain_address("vit.h.14-300e.pth.tar")
    assert obtain().error is None


def test_a_file_of_the_hub_clients_shared_store_is_not_taken_for_damaged(obtain, tmp_path):
    pointer = Path(obtain().file)
    blob = pointer.parent / pointer.readlink()
    store = blob.rename(tmp_path / ("a" * 64))
    blob.symlink_to(store)
    assert obtain().error is None


# --- what a second try cures


@pytest.mark.parametrize("fault", ["drop", "stall"])
def test_a_download_that_breaks_off_goes_on_where_it_was(fault, hub, obtain, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    hub.faults = {"GET": [fault]}
    found = obtain()
    assert found.error is None and Path(found.file).read_bytes() == CONTENT
    whole, rest = hub.ranges()
    assert whole is None and re.fullmatch(r"bytes=[1-9]\d+-", rest)


def test_a_connection_that_closes_without_an_answer_is_opened_again(hub, obtain):
    hub.faults = {"GET": ["close", "close"]}
    assert obtain().error is None
    assert hub.count("GET") == 3


def test_a_server_in_trouble_is_asked_again_after_pauses_that_grow(hub, obtain, pauses):
    hub.faults = {"GET": [503, 500]}
    found = obtain()
    assert found.error is None and found.attempts == 3
    assert hub.count("GET") == 3
    first, second = pauses
    assert 2 <= first <= 4 <= second <= 8


def test_the_pauses_of_two_runs_differ(hub, obtain, pauses):
    hub.faults = {"GET": itertools.repeat(503)}
    obtain(), obtain()
    assert len(set(pauses)) == len(pauses) == 6


def test_a_server_that_is_in_trouble_before_it_says_what_it_has_is_asked_again(hub, obtain):
    hub.faults = {"HEAD": [503, 503]}
    assert obtain().error is None
    assert (hub.count("HEAD"), hub.count("GET")) == (3, 1)


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_asks_for_a_pause_gets_it(status, hub, obtain, pauses):
    hub.faults = {"GET": [(status, {"Retry-After": "30"})]}
    assert obtain().error is None
    assert hub.count("GET") == 2
    assert len(pauses) == 1 and 30 <= pauses[0] <= 31


def test_a_server_that_asks_for_too_long_a_pause_does_not_get_it(hub, obtain, pauses):
    hub.faults = {"GET": [(503, {"Retry-After": "86400"})]}
    assert obtain().error is None
    assert pauses == [300]


def test_a_file_with_a_wrong_checksum_is_fetched_again(hub, obtain):
    hub.faults = {"GET": ["corrupt"]}
    found = obtain()
    assert found.error is None and found.attempts == 2
    assert Path(found.file).read_bytes() == CONTENT


def test_a_file_that_was_damaged_in_the_cache_is_fetched_again(hub, obtain):
    Path(obtain().file).write_bytes(CONTENT[:-1])
    assert obtain().error is None
    assert hub.count("GET") == 2


@pytest.mark.parametrize("fault", ["drop", "corrupt"])
def test_a_plain_address_is_as_robust(fault, hub, obtain, plain_address):
    plain_address(f"vit-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth")
    hub.faults = {"GET": [fault]}
    found = obtain()
    assert found.error is None and Path(found.file).read_bytes() == CONTENT
    assert hub.count("GET") == 2


# --- what no second try cures


def test_a_server_that_stays_in_trouble_is_given_up(hub, obtain, tmp_path):
    hub.faults = {"GET": itertools.repeat(503)}
    found = obtain()
    assert found.file is None and found.attempts == 4
    assert found.error["cause"] == "HTTP 503"
    assert found.error["message"].startswith("the weights of test_vit could not be had from timm/test_vit.r160_in1k: ")
    assert found.error["message"].endswith("(after 4 attempts)")
    assert hub.count("GET") == 4
    assert complete_files(tmp_path) == []


def test_a_file_that_is_always_damaged_is_given_up_and_leaves_nothing(hub, obtain, tmp_path):
    hub.faults = {"GET": itertools.repeat("corrupt")}
    found = obtain()
    assert found.error["cause"] == "CorruptFileError" and found.attempts == 4
    assert complete_files(tmp_path) == []


def test_a_download_that_always_breaks_off_is_given_up_and_leaves_nothing(hub, obtain, tmp_path):
    hub.faults = {"GET": itertools.repeat("close")}
    found = obtain()
    assert found.error is not None and found.attempts == 4
    assert complete_files(tmp_path) == []


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_a_refusal_is_taken_at_its_word(status, hub, obtain, pauses):
    hub.faults = {"HEAD": itertools.repeat(status)}
    found = obtain()
    assert found.error["cause"] == f"HTTP {status}" and found.attempts == 1
    assert (hub.count("HEAD"), hub.count("GET"), pauses) == (1, 0, [])


def test_a_repository_that_is_not_there_is_asked_for_once(hub, obtain):
    hub.files = {}
    assert obtain().error["cause"] == "HTTP 404"
    assert hub.count("HEAD") <= 2 and hub.count("GET") == 0


def test_a_repository_without_weights_is_asked_for_both_of_their_names(hub, obtain):
    hub.files = {"timm/test_vit.r160_in1k/README.md": b"nothing here"}
    assert obtain().error["cause"] == "HTTP 404"
    assert [path for _, path, _ in hub.requests] == [FILE, OLD_FILE]


@pytest.mark.parametrize("model", ["test_vitt", "test_vit.no_such_tag"])
def test_a_misspelt_name_is_told_at_once_with_near_matches(model, hub, obtain, pauses):
    found = obtain(model)
    assert found.error["cause"] == "UnknownModelError" and "did you mean test_vit" in found.error["message"]
    assert (found.attempts, hub.requests, pauses) == (1, [], [])


def test_a_model_that_timm_has_no_weights_of_is_told_at_once(hub, obtain):
    found = obtain("beit3_giant_patch14_224")
    assert found.error["message"] == (
        "timm has no pretrained weights for 'beit3_giant_patch14_224'; weights=random needs none"
    )
    assert hub.requests == []


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionResetError(errno.ECONNRESET, "reset"), True),
        (TimeoutError("timed out"), True),
        (socket.gaierror(socket.EAI_AGAIN, "no name service for now"), True),
        (OSError("Consistency check failed: file should be of size 2 but has size 1"), True),
        (RuntimeError("Data processing error: CAS service error"), True),
        (OSError(errno.ENOSPC, "disk full"), False),
        (PermissionError(errno.EACCES, "not yours"), False),
        (FileNotFoundError(errno.ENOENT, "no such folder"), False),
        (ValueError("a mistake of ours"), False),
        (KeyError("another"), False),
    ],
)
def test_errors_of_the_network_are_told_from_those_of_the_disk_and_from_mistakes(error, expected):
    assert pretrained.is_curable(error) is expected


# --- several processes


@pytest.fixture
def fetching(hub, tmp_path):
    """Start a process that fetches the weights of the model."""
    environment = {
        **module_environment(),
        "HF_ENDPOINT": hub.url,
        "HF_HUB_CACHE": str(tmp_path / "hub"),
    }
    command = [sys.executable, "-c", FETCH, MODEL, str(CHUNK_BYTES)]
    return lambda: subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_two_processes_that_want_the_same_file_fetch_it_once(hub, fetching):
    processes = [fetching(), fetching()]
    files = [process.communicate(timeout=PATIENCE_S)[0].strip() for process in processes]
    assert files[0] == files[1] and Path(files[0]).read_bytes() == CONTENT
    assert hub.count("GET") == 1


def test_a_process_that_is_killed_while_it_fetches_leaves_nothing_that_looks_complete(hub, fetching, obtain, tmp_path):
    hub.faults = {"GET": ["stall"]}
    process = fetching()
    deadline = time.monotonic() + PATIENCE_S
    while not any(path.stat().st_size for path in tmp_path.glob("hub/models--*/blobs/*")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert complete_files(tmp_path) == []
    assert Path(obtain().file).read_bytes() == CONTENT


# --- what a measurement makes of it


@pytest.fixture
def weights(tmp_path) -> record.Weights:
    """Weights that are in order."""
    file = tmp_path / "weights.safetensors"
    file.write_bytes(CONTENT)
    return record.Weights(MODEL, "pretrained", str(file), hashlib.sha256(CONTENT).hexdigest(), len(CONTENT), "somewhere")


def test_weights_are_kept_as_plain_json(weights, tmp_path):
    record.write(weights, tmp_path / "new" / "record.json")
    assert json.loads((tmp_path / "new" / "record.json").read_text())["file"] == weights.file
    assert record.read(tmp_path / "new" / "record.json") == weights


def test_weights_in_order_are_no_failure(weights):
    assert weights.failure() is None


def test_weights_that_could_not_be_had_fail_the_model(weights):
    failure = dataclasses.replace(weights, file=None, error={"cause": "HTTP 404", "message": "gone"}).failure()
    assert (failure.status, failure.cause, failure.message) == ("model_fail_to_load", "HTTP 404", "gone")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [(Path.unlink, "are gone"), (lambda file: file.write_bytes(CONTENT[::-1]), "have changed")],
)
def test_weights_that_are_not_what_they_were_fail_the_model_with_the_remedy(spoil, said, weights):
    spoil(Path(weights.file))
    failure = weights.failure()
    assert failure.status == "model_fail_to_load"
    assert f"the weights {weights.file} {said}; retry=failed" in failure.message


@pytest.fixture
def state(tmp_path):
    """A state dict that is none of the random ones, and how to write it to a file."""
    content = {name: tensor + 1 for name, tensor in timm.create_model(MODEL).state_dict().items()}

    def write(suffix: str) -> Path:
        file = tmp_path / f"weights{suffix}"
        save = safetensors.torch.save_file if suffix == ".safetensors" else torch.save
        save(content, file)
        return file

    return content, write


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".bin"])
def test_a_model_gets_exactly_the_state_dict_in_the_file(suffix, state):
    content, write = state
    loaded = models.create(spec(), write(suffix)).state_dict()
    assert list(loaded) == list(content)
    assert all(torch.equal(loaded[name], content[name]) for name in content)


def test_an_architecture_with_a_format_of_its_own_gets_a_state_dict_from_the_hub(tmp_path):
    model = "vit_tiny_patch16_224"
    assert timm.get_pretrained_cfg(model).custom_load
    content = timm.create_model(model).state_dict()
    safetensors.torch.save_file(content, tmp_path / "model.safetensors")
    loaded = models.create(spec(model), tmp_path / "model.safetensors").state_dict()
    assert all(torch.equal(loaded[name], content[name]) for name in content)


def test_a_file_that_would_run_code_is_not_loaded(tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    torch.save({"trap": Trap()}, tmp_path / "weights.pth")
    with pytest.raises(Exception, match="weights_only"):
        models.create(spec(), tmp_path / "weights.pth")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(("source", "file"), [("pretrained", None), ("packaged", None), ("random", Path("some.pth"))])
def test_a_file_too_few_or_too_many_is_refused(source, file):
    with pytest.raises(ValueError, match=f"{source} weights, but the request names"):
        models.create(spec(source=source), file)


def test_random_weights_touch_no_network(monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    models.create(spec(source="random"))
