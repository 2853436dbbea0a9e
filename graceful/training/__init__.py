"""Training one version: a driver that starts and follows it, workers that do it, an engine that steps. Loads lazily.

driver              what is done, what is not      [driver]
ray_fit             Ray Train V2                   [driver, worker]
job                 a run as values and files      [both]
trace               metrics.jsonl                  [both]
loop                steps, epochs, evaluation      [worker]
rank_context        rank, device, checkpoints      [worker]
batches             read, transform, old outputs   [worker]
objective           losses of a batch, by terms    [worker]
engine              DeepSpeed                      [worker]
plain               torch alone                    [worker]
versions            predecessors, opened           [worker]
merging             which terms become one         [worker]
budget_multipliers  multipliers and their choice   [worker]
stops               what a loop counts             [worker]
checkpoint          folders with manifests         [worker]
sampler, schedule   pure functions                 [worker]
"""
