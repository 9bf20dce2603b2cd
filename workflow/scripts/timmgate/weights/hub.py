"""Pretrained weights: the file that timm would load, out of the caches of timm and its hub client, else fetched into them.

What is in a cache needs no network. The hub client resumes a download that breaks off, and repeats some requests itself;
what else a second try can cure is tried again here.
"""

import contextlib
import errno
import itertools
import random
import re
from pathlib import Path
from urllib.parse import urlparse

import timm
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import (
    FileMetadataError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
)
from huggingface_hub.file_download import http_get
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt
from timm.models import get_pretrained_cfg
from timm.models._hub import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME, download_from_hf, get_cache_dir, hf_split

from timmgate.core import files
from timmgate.core.names import check_name
from timmgate.weights.record import NoWeightsError, WeightsFile, digest

ATTEMPTS = 4
"""How often a file is asked for at most. One attempt can be many requests: the hub client repeats some by itself."""

BACKOFF_S = 2.0
"""Pause before the second attempt; it doubles with every further one, and up to as much again is added at random."""

LONGEST_PAUSE_S = 300.0
"""A server that asks for a longer pause (Retry-After) does not get it."""

CURABLE_STATUSES = (408, 425, 429)
"""HTTP statuses below 500 that a second try can cure."""

LOCAL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Errors of the disk, which no second try cures. Those of missing files and permissions have classes of their own."""

HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.")
"""How torch.hub's file names carry the beginning of their SHA-256; shorter ones mean something else."""


class CorruptFileError(OSError):
    """A file is not what its name or its server says; it is gone now."""


def fetch(model: str, folder: Path) -> WeightsFile:
    """The file with the weights that timm loads for `model`; nothing is made, so nothing is put into `folder`.

    Raises UnknownModelError, and NoWeightsError if timm has none for the model or they cannot be had.
    """
    check_name(model, timm)
    config = get_pretrained_cfg(model)
    if not (config and (config.hf_hub_id or config.url)):
        raise NoWeightsError(f"timm has no pretrained weights for {model!r}; weights=random needs none")
    retrying = Retrying(
        stop=stop_after_attempt(ATTEMPTS),
        wait=pause_s,
        retry=retry_if_exception(is_curable),
        before_sleep=lambda state: print(f"attempt {state.attempt_number}: {describe(state.outcome.exception())}"),
        reraise=True,
    )
    try:
        if config.hf_hub_id:
            found = retrying(from_hub, config.hf_hub_id, config.hf_hub_filename)
        else:
            found = retrying(from_url, config.url)
    except Exception as error:
        attempts = retrying.statistics["attempt_number"]
        after = f" (after {attempts} attempts)" if attempts > 1 else ""
        place = config.hf_hub_id or config.url
        message = f"the weights of {model} could not be had from {place}: {describe(error)}{after}"
        raise NoWeightsError(message, name(error), attempts) from error
    return found._replace(attempts=retrying.statistics["attempt_number"])


def from_hub(hub_id: str, filename: str | None) -> WeightsFile:
    """One attempt at a file of the model hub; without a name timm prefers safetensors."""
    repository, revision = hf_split(hub_id)
    names = [filename] if filename else [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME]
    cached = (try_to_load_from_cache(repository, each, revision=revision) for each in names)
    file = next((each for each in cached if isinstance(each, str)), None) or download_first(hub_id, names)
    file = Path(file)
    return WeightsFile(file, verified(file, expected_of_blob(file)), f"{repository}@{file.parent.name}/{file.name}")


def download_first(hub_id: str, names: list[str]) -> str:
    """Download the first of these files that the repository has."""
    *preferred, last = names
    for each in preferred:
        with contextlib.suppress(RemoteEntryNotFoundError):
            return download_from_hf(hub_id, each)
    return download_from_hf(hub_id, last)


def from_url(url: str) -> WeightsFile:
    """One attempt at a plain address, into timm's own cache."""
    file = Path(get_cache_dir(), Path(urlparse(url).path).name)
    match = HASH_IN_NAME.search(file.name)
    expected = match[1] if match else ""

    def download(scratch: Path) -> None:
        with scratch.open("wb") as stream:
            http_get(url, stream)
        verified(scratch, expected)

    if not file.is_file():
        files.write_atomically(file, download)
    return WeightsFile(file, verified(file, expected), url)


def expected_of_blob(file: Path) -> str:
    """SHA-256 of a file in the hub client's cache, which the name that it links to is; empty where it is another hash."""
    blob = file.readlink().name if file.is_symlink() else ""
    return blob if re.fullmatch("[0-9a-f]{64}", blob) else ""


def verified(file: Path, expected: str) -> str:
    """SHA-256 of a file. Removes it and raises CorruptFileError unless that begins with `expected`."""
    sha256 = digest(file)
    if not sha256.startswith(expected):
        remove(file)
        raise CorruptFileError(f"the SHA-256 of {file.name} begins with {sha256[:8]}, not with {expected[:8]}")
    return sha256


def remove(file: Path) -> None:
    """Remove a file, and what it links to."""
    if file.is_symlink():
        remove(file.parent / file.readlink())
    file.unlink(missing_ok=True)


def is_curable(error: BaseException) -> bool:
    """Whether the same request may well succeed a little later."""
    error = root(error)
    if status := http_status(error):
        return status >= 500 or status in CURABLE_STATUSES
    if isinstance(error, OfflineModeIsEnabled | FileMetadataError | FileNotFoundError | PermissionError):
        return False
    if getattr(error, "errno", None) in LOCAL_ERRNOS:
        return False
    return isinstance(error, OSError | HTTPError | RuntimeError)  # the last is how hf_xet says that the network failed


def pause_s(state: RetryCallState) -> float:
    """Seconds until the next attempt: exponential with jitter, or as long as the server asks for."""
    response = getattr(root(state.outcome.exception()), "response", None)
    asked = response.headers.get("Retry-After", "") if response is not None else ""
    backoff_s = BACKOFF_S * 2 ** (state.attempt_number - 1)
    return max(random.uniform(backoff_s, 2 * backoff_s), min(float(asked) if asked.isdigit() else 0.0, LONGEST_PAUSE_S))


def root(error: BaseException) -> BaseException:
    """What happened, where the hub client only says that a file is not in its cache."""
    while isinstance(error, LocalEntryNotFoundError) and error.__cause__:
        error = error.__cause__
    return error


def http_status(error: BaseException) -> int | None:
    """The status that a server answered with, if it did."""
    return getattr(getattr(error, "response", None), "status_code", None)


def name(error: BaseException) -> str:
    """The cause of an error in a word or two."""
    status = http_status(root(error))
    return f"HTTP {status}" if status else type(root(error)).__name__


def describe(error: BaseException) -> str:
    """The first two lines of what an error says, or its name; the hub client says in the second what it asked for."""
    lines = filter(None, map(str.strip, str(root(error)).splitlines()))
    return " ".join(itertools.islice(lines, 2)) or name(error)
