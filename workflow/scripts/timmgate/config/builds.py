"""Builds: what compiles. A label, its options, and the facts of the environment behind it that can change a figure.

The main process has each environment's own Python find the facts once per start (`system.build_facts`), and leaves them in
files; jobs, also those of a cluster, read the files, so that all of a run speak of the same.
"""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from timmgate import module_environment
from timmgate.config.settings import WHOLE_REGISTRY, Settings
from timmgate.core.build import DEFAULT, BuildOptions
from timmgate.core.errors import ConfigError, last_words
from timmgate.core.files import with_home, write_text
from timmgate.system.build_facts import MISSING, NEEDED

ANSWER_TIMEOUT_S = 900.0
"""Longest wait for the facts. A choice: the first time some GB of libraries are read, perhaps from a slow network's disk."""

OLDEST_PYTHON = (3, 10)
"""Of a worker."""


@dataclass(frozen=True)
class Build:
    """What compiles. `facts` are plain values: versions, variables, and a digest of each source of code."""

    label: str = DEFAULT
    options: BuildOptions = field(default_factory=BuildOptions)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def software(self) -> str:
        """Hex digest (SHA-256) of the facts: equal if and only if nothing that is known of the build differs."""
        return hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()


def needed(settings: Settings) -> dict[str, BuildOptions]:
    """The requested builds, and the default one where it is its timm that says which models there are."""
    lists_models = {DEFAULT: settings.all_builds.get(DEFAULT, BuildOptions())} if settings.suite == WHOLE_REGISTRY else {}
    return {**settings.builds, **lists_models}


def find_all(options: Mapping[str, BuildOptions], cache: Path) -> dict[str, Build]:
    """The builds with these labels, with their facts; `cache` is a folder for what is remembered of files.

    Raises ConfigError for the first that has none.
    """
    with ThreadPoolExecutor(len(options)) as pool:
        return {build.label: build for build in pool.map(partial(find, cache), *zip(*options.items(), strict=True))}


def find(cache: Path, label: str = DEFAULT, options: BuildOptions | None = None) -> Build:
    """One build, with its facts. Raises ConfigError with a sentence that says why it cannot measure anything."""
    options = options or BuildOptions()
    python, where = program(options, label), f"build {label!r}"
    question = {
        "digests": str(cache.absolute() / "digests.json"),
        "imports": options.import_,
        "variables": sorted(options.env),
    }
    command = [python, "-m", "timmgate.system.build_facts", json.dumps(question)]
    try:
        answer = subprocess.run(
            command,
            env=module_environment(options.env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=ANSWER_TIMEOUT_S,
        )
    except OSError as error:
        raise ConfigError(f"{where}: {python} does not start ({error.strerror})") from None
    except subprocess.TimeoutExpired:
        raise ConfigError(f"{where}: {python} did not say within {ANSWER_TIMEOUT_S:g} s what it has") from None
    if answer.returncode == MISSING:
        remedy = f"install it there: a build needs {', '.join(NEEDED)}, and what it imports"
        raise ConfigError(f"{where}: {last_words(answer)} in {python}; {remedy}")
    try:  # what is around an interpreter may print too, before ours does
        facts = json.loads(answer.stdout.strip().rpartition("\n")[2] if answer.returncode == 0 else "")
    except ValueError:
        problem = _problem(python) or f"{python} could not say what it has: {last_words(answer)}"
        raise ConfigError(f"{where}: {problem}") from None
    return Build(label, replace(options, python=options.python and python), facts)


def program(options: BuildOptions, label: str) -> str:
    """The Python of a build, as a path from the root, whose links are not followed: a virtual environment is known by them.

    Raises ConfigError where there is none.
    """
    if options.python is None:
        return sys.executable
    where, given = f"build {label!r}: python is {options.python!r}", with_home(options.python)
    found, path = shutil.which(given), Path(given)  # a path would lose the ./ that says that it is no name
    if found:
        return str(Path(found).absolute())
    inside = path / "bin" / "python"
    if inside.is_file():
        raise ConfigError(f"{where}, which is a folder; did you mean {inside}?")
    reason = "cannot be executed" if path.exists() else "does not exist"
    raise ConfigError(f"{where}, which {reason}; it must be the path of an environment's Python, as in ~/nightly/bin/python")


def _problem(python: str) -> str | None:
    """That a program is no Python, or one that is too old for a worker; None if it is neither."""
    code = "import sys; sys.stdout.write('Python %d %d' % sys.version_info[:2])"
    said = subprocess.run([python, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    word, *version = said.stdout.strip().rpartition("\n")[2].split() or [""]
    if word != "Python":
        return f"{python} is no Python: {last_words(said)}"
    is_old = tuple(map(int, version)) < OLDEST_PYTHON
    return f"{python} is older than Python {'.'.join(map(str, OLDEST_PYTHON))}" if is_old else None


def save(builds: Iterable[Build], folder: Path) -> None:
    """Leave builds and their facts for the jobs of this run."""
    for build in builds:
        values = {"options": asdict(build.options), "facts": build.facts}
        text = json.dumps(values, indent=1, sort_keys=True) + "\n"
        path = folder / f"{build.label}.json"
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)


def load(folder: Path, label: str = DEFAULT) -> Build:
    """The inverse of `save`, for one of them."""
    values = json.loads((folder / f"{label}.json").read_text(encoding="utf-8"))
    return Build(label, BuildOptions(**values["options"]), values["facts"])
