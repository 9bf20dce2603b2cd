"""What is done again although it has a result: cells by their status, with the key `retry`, and whatever is damaged."""

from timmgate import retries, weights as known_weights

try:
    RETRIES = retries.Retries(Path("results", SETTINGS.device, "retries.json"))
    WEIGHTS_RETRIES = retries.Retries(Path("weights", SETTINGS.weights, "retries.json"))
except settings.ConfigError as error:
    raise WorkflowError(str(error)) from None


def ask_for_damaged():
    """Ask for every job with a missing or damaged file, and say so."""
    merged = [table for table in tables() if table.endswith(".parquet")]
    jobs = {
        f"{mode}/{model}": [
            (cell_file(mode, model, CHECKS[check]), cell_file(mode, model, check)) for check in SETTINGS.checks
        ]
        for mode, model in CELLS
    }
    jobs |= {"merge": [(table,) for table in merged[:-1]], "flag": [(merged[-1],)]}
    for file in retries.ask_for_damaged(RETRIES, jobs):
        print(f"{file} is missing or damaged, as by a power failure, and is made again", file=sys.stderr)


def ask_for_failed():
    """Ask for the cells with a status that `retry` names, with their weights if that is what they wanted, and say so."""
    rows = {f"{mode}/{model}": {check: cell_file(mode, model, check) for check in SETTINGS.checks} for mode, model in CELLS}
    found = retries.ask_for_failed(RETRIES, rows, SETTINGS.retry)
    for model in {cell.split("/")[1] for cell, wanted_weights in found.items() if wanted_weights}:
        file = Path("weights", SETTINGS.weights, f"{model}.json")
        if file.is_file():
            WEIGHTS_RETRIES.ask(model, known_weights.read(file).retry)
    if found and not any(Path(".snakemake", "metadata").glob("*")):
        rows_of_found = " ".join(file for cell in found for file in rows[cell].values())
        raise WorkflowError(
            f"retry needs Snakemake's records of what was done, but .snakemake/metadata is gone; instead: rm -f {rows_of_found}"
        )
    print(f"retry: {len(found)} of {len(CELLS)} cells are measured again", file=sys.stderr)


if workflow.is_main_process:  # jobs on a cluster only read what it has asked for
    ask_for_damaged()
    if SETTINGS.retry:
        ask_for_failed()
