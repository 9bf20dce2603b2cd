"""Makes docs/pictures/board.svg: the live board of a real run, as a terminal of 80 columns shows it.

    python docs/pictures/board.py

It measures small models in a folder of its own, in tmux, takes the picture when half of the cells are done, and ends the
run. One mode is wrong on purpose. Takes some minutes.
"""

import io
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parents[2]
PICTURE = Path(__file__).with_name("board.svg")
COLUMNS, LINES = 80, 24
WRONG = "{wrong: {backend: fault:replace-activation}}"
MODELS = "test_vit,test_resnet,test_efficientnet"
CONFIG = ("suite=tiny", f"models={MODELS}", "modes=inference,inference-amp,training,wrong", f"mode_catalogue={WRONG}")
PATIENCE_S = 1800


def main() -> None:
    """Run, wait, take the picture."""
    with tempfile.TemporaryDirectory() as folder:
        socket = f"{folder}/tmux"
        snakemake = [Path(sys.executable).with_name("snakemake"), "--snakefile", ROOT / "Snakefile", "--cores", "2"]
        command = shlex.join(map(str, [*snakemake, "--config", *CONFIG]))
        try:
            tmux(socket, "new-session", "-d", "-x", str(COLUMNS), "-y", str(LINES), "-c", folder, command)
            save(wait_for_half(socket))
        finally:
            tmux(socket, "send-keys", "C-c")
            while tmux(socket, "has-session", check=False).returncode == 0:
                time.sleep(1)


def tmux(socket: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Talk to a tmux of our own."""
    return subprocess.run(["tmux", "-S", socket, "-f", "/dev/null", *arguments], check=check, capture_output=True, text=True)


def wait_for_half(socket: str) -> str:
    """The screen, with its colours, when half of the cells are done and one of them failed."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        screen = tmux(socket, "capture-pane", "-e", "-p").stdout
        counts = re.search(r"(\d+) of (\d+) cells", screen)
        if counts and 2 * int(counts[1]) >= int(counts[2]) and "fail_accuracy" in screen:
            return screen
        time.sleep(1)
    raise TimeoutError("half of the cells were not done in time")


def save(screen: str) -> None:
    """Draw the screen as a picture."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(screen.rstrip()))
    picture = console.export_svg(title="snakemake --cores 2")
    without_downloads = re.sub(r"@font-face \{.*?\}", "", picture, flags=re.DOTALL)
    PICTURE.write_text(without_downloads, encoding="utf-8")


if __name__ == "__main__":
    main()
