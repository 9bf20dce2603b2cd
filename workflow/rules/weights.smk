# Downloads at a time; --resources downloads=N overrides it.
if "downloads" not in workflow.global_resources:
    workflow.register_resource("downloads", 4)


rule weights:
    output:
        "weights/{source}/{model}.json",
    log:
        "logs/weights/{source}/{model}.log",
    wildcard_constraints:
        source="pretrained|packaged",
    retries: 2  # of a job that was killed; whatever the network does is in its output
    localrule: True  # the nodes of a cluster often have no network
    conda:
        "../envs/timmgate.yaml"
    resources:
        downloads=1,
    params:
        timm=TIMM,  # which names, and which tensors of them, are the weights of a model
        retry=lambda wildcards: WEIGHTS_RETRIES.rerun_generation(wildcards.model),
    script:
        "../scripts/weights.py"
