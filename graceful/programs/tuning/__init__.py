"""Parts of `graceful tune`: what varies, how a trial is run and judged, how the winner is chosen. In the driver.

space     spec -> parameters; point -> compatibility section            [pure]
scoring   who answers what right -> error against the limit, worst NFR  [floats and NumPy]
splits    which ids the search sees, and which it does not
fits      train one point with one seed, once, and note its answers
study     Optuna: ask, tell, continue
final     the best again with fresh seeds; test, once
present, pictures, result   the table while it runs, files at the end
"""
