"""Training one version: a driver that starts and follows it, workers that do it, an engine that steps. Loads lazily.

driver     run folder, identity, result             [driver]     ray_fit    Ray Train V2          [driver]
loop       epochs, steps, evaluation                [workers]    batches    read, transform, old  [workers]
engine     DeepSpeed | plain torch                  [workers]    objective  losses of a batch     [workers]
checkpoint folders with a manifest                  [workers]    trace      metrics.jsonl         [both]
sampler, schedule                                   pure functions
"""
