"""Two builds against each other: every cell timed by both in turns, in fresh processes of one job.

With a baseline of measured tables, every build against those, without measuring anything for it; with a candidate, that
instead of the builds, and nothing is measured at all.
"""


rule compare:
    input:
        unpack(compared_results),
    output:
        table=f"results/{SETTINGS.device}/comparison.parquet",
        tsv=f"results/{SETTINGS.device}/comparison.tsv",
    log:
        f"logs/{SETTINGS.device}/compare.log",
    localrule: True
    conda:
        "../envs/timmgate.yaml"
    params:
        candidate=CANDIDATE,
        builds=lambda wildcards: compared_builds(),
        baseline=lambda wildcards: compared_baseline(),
        called=SETTINGS.baseline,
        checks=list(SETTINGS.checks),
        facts=FACTS,
        contents=lambda wildcards: contents_of(compared_baseline(), CANDIDATE and CANDIDATE.measured),
    script:
        "../scripts/compare.py"


rule pair:
    input:
        rows_of_both,  # what is measured again is compared again, and the compile caches are filled
        weights=WEIGHTS,
    output:
        "results/{device}/pairs/{before}..{after}/{mode}/{model}.parquet",
    log:
        "logs/{device}/pairs/{before}..{after}/{mode}/{model}.log",
    wildcard_constraints:
        before="|".join(map(re.escape, SETTINGS.builds)),
        after="|".join(map(re.escape, SETTINGS.builds)),
    retries: 2  # of a job that was killed
    conda:
        "../envs/timmgate.yaml"
    threads: SETTINGS.run.threads
    resources:
        **{**WORKER_RESOURCES, "mem_mb": memory_of_pair_mb},
        runtime=runtime_min(2 * SETTINGS.run.processes + 2),  # the first side by side, in vain
    params:
        cells=lambda wildcards: [cell(wildcards, build).to_dict() for build in (wildcards.before, wildcards.after)],
        processes=SETTINGS.run.processes,
    script:
        "../scripts/pair.py"
