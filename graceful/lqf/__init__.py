"""Linear-quadratic fine-tuning (LQF): a network linearised at its starting weights, fitted with squared error.

    f_lin(x; delta) = f(x; w0) + J(x) delta
    L(delta) = 1/(2 N) sum_ic W_ic (f_lin(x_i)_c - T_ic)^2 + penalty/2 |delta|^2

T is `amplitude` times the one-hot label, moved towards outputs of predecessors where the spec says so (`targets`). The
objective is quadratic with one minimum, so a version does not depend on the order of its data. Sums run over classes,
means over samples. Here are values and tensors; `training.linearised` runs them. Source: Achille et al., LQF:
Linear-Quadratic Fine-Tuning (CVPR 2021).
"""
