"""What is done again although it has a result: cells by their status, with the key `retry`."""

from timmgate.tables import retries
from timmgate.weights import record

with config_errors():
    RETRIES = retries.Retries(Path("results", SETTINGS.device, "retries.json"))
    WEIGHTS_RETRIES = retries.Retries(Path("weights", SETTINGS.weights, "retries.json"))


def request_failed():
    """Request the cells with a status that `retry` names, with their weights if those were missing, and say so."""
    rows = {"/".join(cell): {check: cell_file(*cell, check) for check in SETTINGS.checks} for cell in CELLS}
    found = retries.request_failed(RETRIES, rows, SETTINGS.retry, SETTINGS.run.accuracy_rule)
    for model in {cell.split("/")[2] for cell, wanted_weights in found.items() if wanted_weights}:
        file = Path("weights", SETTINGS.weights, f"{model}.json")
        if file.is_file() and (before := record.read(file)).failure():
            WEIGHTS_RETRIES.request(model, before.retry)
    files = [file for cell in found for file in rows[cell].values() if Path(file).is_file()]
    if unknown := retries.without_record(files, Path(".snakemake", "metadata")):
        raise WorkflowError(
            "retry needs Snakemake's records of what was done, and .snakemake/metadata has none of these files, as of results "
            f"that were copied; instead: rm -f {' '.join(unknown)}"
        )
    print(f"retry: {len(found)} of {len(CELLS)} cells are measured again", file=sys.stderr)


if workflow.is_main_process and SETTINGS.retry:  # jobs on a cluster only read what it has requested
    request_failed()
