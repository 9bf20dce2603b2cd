from snakemake.utils import min_version

min_version("9.20")


configfile: f"{workflow.basedir}/config/config.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/begin_and_end.smk"
include: "workflow/rules/retry.smk"
include: "workflow/rules/watch.smk"
include: "workflow/rules/suite.smk"
include: "workflow/rules/weights.smk"
include: "workflow/rules/preflight.smk"
include: "workflow/rules/doctor.smk"
include: "workflow/rules/measure.smk"
include: "workflow/rules/confirm.smk"
include: "workflow/rules/tables.smk"
include: "workflow/rules/history.smk"
include: "workflow/rules/gate.smk"
include: "workflow/rules/export.smk"
include: "workflow/rules/compare.smk"
include: "workflow/rules/diagnose.smk"
include: "workflow/rules/repro.smk"
include: "workflow/rules/trace.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/power.smk"
include: "workflow/rules/calibrate.smk"


rule all:
    default_target: True
    input:
        unpack(all_results),
    localrule: True


onstart:
    lift_default_rate_limit()
    refuse_folders_that_cannot_be_written()
    forget_outcome()
    builds.save(BUILDS.values(), Path(FACTS))
    announce()
    announce_conditions()
    refuse_report_without_its_libraries()
    refuse_what_is_not_possible()
    RETRIES.save()
    WEIGHTS_RETRIES.save()
    watch()


onsuccess:
    WATCHING.close()
    show_tables()
    say_what_changed()


onerror:
    WATCHING.close()
    WHEN_INCOMPLETE.close()
    say_what_changed()
    say_why()
