REPORT = f"results/{SETTINGS.device}/report"
# Tables that are shown if there are such, and they are of today.
BESIDE = [f"results/{SETTINGS.device}/{name}" for name in ("gate.tsv", "history.tsv", "comparison.parquet", "power.tsv")]


rule report:
    input:
        unpack(all_results),
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
