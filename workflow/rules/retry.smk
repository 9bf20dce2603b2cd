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
        if file.is_file() and (known := record.read(file)).failure():
            WEIGHTS_RETRIES.request(model, known.retry)
    if found and not any(Path(".snakemake", "metadata").glob("*")):
        rows_of_found = " ".join(file for cell in found for file in rows[cell].values())
        raise WorkflowError(
            f"retry needs Snakemake's records of what was done, but .snakemake/metadata is gone; instead: rm -f {rows_of_found}"
        )
    print(f"retry: {len(found)} of {len(CELLS)} cells are measured again", file=sys.stderr)


if workflow.is_main_process and SETTINGS.retry:  # jobs on a cluster only read what it has requested
    request_failed()
