"""What would make timings worse on this machine, and what to do about it, in the terminal and in the log."""

from pathlib import Path
from typing import TYPE_CHECKING

from timmgate.report import doctor
from timmgate.system import fitness, gpus, machine

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    found = []
    if snakemake.params.device == "cuda":
        uuids = gpus.visible()
        found += [*fitness.of_cuda(uuids, gpus.AMD.is_file()), *fitness.of_gpus(uuids, fitness.ask_gpus(uuids))]
    found += fitness.findings(snakemake.threads)
    text = doctor.text(found, machine.facts())
    Path(snakemake.log[0]).write_text(text, encoding="utf-8")
    print(text, end="", flush=True)
