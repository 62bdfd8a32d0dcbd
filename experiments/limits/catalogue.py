"""Every limiting case, in the order of the table and of the figure's panels."""

from experiments.limits import dynamics, identities, optimizers
from experiments.limits.laws import Case

IDENTITIES = "Identities"
"""The panel of the cases that have no error but rounding."""

_ADABAYES_FP = "AdaBayes-FP"
_EPSILON = "AdaBayes-FP → AdamW"
_EULER = "Euler → exact discretization"
_RECURSION = "Recursion → fixed point"

_CASES = (
    Case(
        "adabayes-sgd", "AdaBayes → SGD", "AdaBayes, exact discretization",
        "SGD with momentum, rate σ²", "hσ⁴/η²", 0.2, optimizers.adabayes_to_sgd,
    ),
    Case(
        "adabayes-fp-sgd", "AdaBayes-FP → SGD", _ADABAYES_FP,
        "SGD with momentum, rate σ²", "hσ⁴/η²", 0.2, optimizers.adabayes_fp_to_sgd,
    ),
    Case(
        "adabayes-adamw", "AdaBayes → AdamW", "AdaBayes, σ² → ∞, constant g², at rest",
        "AdamW, ε = 0", "η√h", 4.0, optimizers.adabayes_to_adamw,
    ),
    Case(
        "taylor-exact", "Taylor's fixed point → exact", "AdaBayes-FP, σ² = ∞, Taylor",
        "AdaBayes-FP, σ² = ∞, exact", "η√h", 0.1, optimizers.taylor_to_exact,
    ),
    Case(
        "prior-epsilon", _EPSILON, _ADABAYES_FP,
        "AdamW, ε = η/2σ²", "η/(2σ²√h)", 0.1, optimizers.prior_as_epsilon, "ε = η/2σ²",
    ),
    Case(
        "prior-no-epsilon", _EPSILON, _ADABAYES_FP,
        "AdamW, ε = 0", "η/(2σ²√h)", 0.1, optimizers.prior_without_epsilon, "ε = 0",
    ),
    Case(
        "rmsprop-rmsprop", "BayesRMSprop → RMSprop", "BayesRMSprop, at rest",
        "RMSprop, ε = 0", "η√s", 0.4, optimizers.bayes_rmsprop_to_rmsprop,
    ),
    Case(
        "rmsprop-sgd", "BayesRMSprop → SGD", "BayesRMSprop, at rest",
        "SGD, rate η²", "1/(η²s)", 0.4, optimizers.bayes_rmsprop_to_sgd,
    ),
    Case(
        "rmsprop-natural", "BayesRMSprop → natural gradient", "BayesRMSprop, t = 50",
        "natural gradient, rate 1/t", "η²s", 1.2, optimizers.bayes_rmsprop_to_natural_gradient,
    ),
    Case(
        "proportional-static", "ProportionalNoise → Static", "ProportionalNoise, t = 20",
        "Static", "λ", 0.5, dynamics.proportional_to_static,
    ),
    Case(
        "forget-proportional", "ForgetToPrior → ProportionalNoise", "ForgetToPrior, t = 40",
        "ProportionalNoise", "ρ/(hS₀)", 1.0, dynamics.forgetting_to_proportional,
    ),
    Case(
        "euler-walk", _EULER, "AdaBayes, Euler, t = 20",
        "AdaBayes, exact discretization", "η²/σ²", 0.6, dynamics.euler_to_exact_walk, "t = 20",
    ),
    Case(
        "euler-rest", _EULER, "Fixed noise, Euler, at rest without evidence",
        "exact discretization", "η²/σ²", 0.2, dynamics.euler_to_exact_rest, "at rest",
    ),
    Case(
        "dense-root", "Dense random walk → inverse root",
        "extended Kalman filter with drift, at rest",
        "ηH^(−½)", "η√hₘᵢₙ", 9.0, dynamics.dense_to_inverse_root,
    ),
    Case(
        "proportional-rest", "ProportionalNoise → rest",
        "online natural gradient, λ = 0.05", "rest, Σ = λ/⟨g²⟩", "step t", 0.9,
        dynamics.proportional_to_rest,
    ),
    Case(
        "recursion-rich", _RECURSION, "AdaBayes, much data (η√h = 0.1)",
        "AdaBayes-FP, exact", "step t", 0.3, dynamics.recursion_to_rest_rich, "much data",
    ),
    Case(
        "recursion-poor", _RECURSION, "AdaBayes, little data (hσ⁴/η² = 0.1)",
        "AdaBayes-FP, exact", "step t", 1.2, dynamics.recursion_to_rest_poor, "little data",
    ),
    Case(
        "identity-adamw", IDENTITIES, "AdaBayes-FP, σ² = ∞",
        "torch.optim.AdamW, ε = 0", "", 0.1, identities.adamw,
    ),
    Case(
        "identity-rmsprop", IDENTITIES, "preset rmsprop",
        "torch.optim.RMSprop, ε = 0", "", 0.1, identities.torch_rmsprop,
    ),
    Case(
        "identity-sgd", IDENTITIES, "preset sgd",
        "torch.optim.SGD with momentum", "", 0.1, identities.torch_sgd,
    ),
    Case(
        "identity-regression", IDENTITIES, "Dense + Static + GaussNewton",
        "Bayesian linear regression", "", 0.1, identities.bayesian_regression,
    ),
    Case(
        "identity-kalman", IDENTITIES, "Dense + RandomWalk + GaussNewton",
        "Kalman filter", "", 0.1, identities.kalman_filter,
    ),
)  # fmt: skip

CASES = {case.name: case for case in _CASES}
