from importlib.util import find_spec

REPORT = f"results/{SETTINGS.device}/report"
BESIDE = [
    f"results/{SETTINGS.device}/{name}.tsv" for name in ("gate", "history")
]  # shown if there are such, and they are of today


def refuse_report_without_its_libraries():
    """End with a sentence if the report is asked for and cannot be drawn, before anything is measured for it."""
    if any(job.rule.name == "report" for job in workflow.dag.needrun_jobs()):
        missing = [name for name in ("altair", "vl_convert", "itables") if find_spec(name) is None]
        if missing:
            sys.exit(f"The report needs {', '.join(missing)}: pip install -c requirements.lock -e '.[report]'")


rule report:
    input:
        unpack(cell_rows),  # one that was deleted is measured again first
        tables(),
    output:
        page=report(
            f"{REPORT}.html", caption="../report/page.rst", category="Report", labels={"shows": "everything, on one page"}
        ),
        pictures=report(
            directory(REPORT),
            patterns=["{name}.svg"],
            caption="../report/picture.rst",
            category="Pictures",
            labels={"shows": "{name}"},
        ),
    log:
        f"logs/{SETTINGS.device}/report.log",
    localrule: True
    conda:
        "../envs/timmgate.yaml"
    params:
        beside=lambda wildcards: [Path(name).stat().st_mtime_ns for name in BESIDE if Path(name).is_file()],
    script:
        "../scripts/report.py"
