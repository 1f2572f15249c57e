"""What is minimised on preferences: one function for each loss, from log-probabilities of responses to a loss per row.

Legend: N rows; pi, the model that is trained; ref, the reference, which is the model as it was; y_w and y_l, the chosen
and the rejected response. A log-probability is that of a whole response given its prompt, the sum over its tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch.nn import functional

from automl.lora import Hyperparameters
from automl.methods.settings import Setting
from automl.space.schema_preference import (
    BETA,
    CPO_ALPHA,
    DESIRABLE_WEIGHT,
    LABEL_SMOOTHING,
    LENGTH_NORMALIZATION,
    LOSS,
    SFT_WEIGHT,
    SIMPO_BETA,
    SIMPO_GAMMA,
    UNDESIRABLE_WEIGHT,
)


class Said(NamedTuple):
    """N responses. logps: log pi, (N,) with graph. reference: log ref, (N,). tokens: their numbers, (N,)."""

    logps: torch.Tensor
    reference: torch.Tensor
    tokens: torch.Tensor

    def halves(self) -> tuple[Said, Said]:
        """The first and the second half of the responses."""
        first, second = zip(*(tensor.chunk(2) for tensor in self), strict=True)
        return Said(*first), Said(*second)

    @property
    def ratios(self) -> torch.Tensor:
        """log pi - log ref, (N,): the implicit reward but for beta. Source: Rafailov et al. 2023 (DPO), eq. 5."""
        return self.logps - self.reference

    @property
    def means(self) -> torch.Tensor:
        """log pi per token, (N,)."""
        return self.logps / self.tokens


PairLoss = Callable[[Said, Said, Hyperparameters], torch.Tensor]
"""From chosen and rejected responses of N pairs to losses, (N,)."""


def dpo(chosen: Said, rejected: Said, hyper: Hyperparameters) -> torch.Tensor:
    """-log sigmoid(beta * d), d = log-ratio of y_w less that of y_l; with length_normalization both per token.

    Sources: Rafailov et al. 2023 (DPO), eq. 7; smoothing: Mitchell 2023 ("A note on DPO with noisy preferences", cDPO);
    per token: Lambert et al. 2024 (Tulu 3), eq. 6.
    """
    better, worse = chosen.ratios, rejected.ratios
    if LENGTH_NORMALIZATION.of(hyper):
        better, worse = better / chosen.tokens, worse / rejected.tokens
    return _smoothed(_number(BETA, hyper) * (better - worse), hyper)


def ipo(chosen: Said, rejected: Said, hyper: Hyperparameters) -> torch.Tensor:
    """(d - 1 / (2 beta))^2, d as in DPO with log-ratios per token. Source: Azar et al. 2023 (IPO), eq. 17; beta is tau.

    Per token, as the authors have said of their own results (TRL, dpo_trainer.py).
    """
    ahead = chosen.ratios / chosen.tokens - rejected.ratios / rejected.tokens
    return (ahead - 1.0 / (2.0 * _number(BETA, hyper))) ** 2


def orpo(chosen: Said, rejected: Said, hyper: Hyperparameters) -> torch.Tensor:
    """-log p(y_w) - beta * log sigmoid(log odds(y_w) - log odds(y_l)), p per token, odds(y) = p / (1 - p).

    Source: Hong et al. 2024 (ORPO), eq. 4, 6 and 7; beta is lambda. Without a reference.
    """
    ahead = _log_odds(chosen.means) - _log_odds(rejected.means)
    return -chosen.means - _number(BETA, hyper) * functional.logsigmoid(ahead)


def simpo(chosen: Said, rejected: Said, hyper: Hyperparameters) -> torch.Tensor:
    """-log sigmoid(simpo_beta * d - simpo_gamma), d = log pi per token of y_w less that of y_l.

    Source: Meng et al. 2024 (SimPO), eq. 6. Without a reference.
    """
    ahead = _number(SIMPO_BETA, hyper) * (chosen.means - rejected.means)
    return _smoothed(ahead - _number(SIMPO_GAMMA, hyper), hyper)


def cpo(chosen: Said, rejected: Said, hyper: Hyperparameters) -> torch.Tensor:
    """-log sigmoid(beta * (log pi(y_w) - log pi(y_l))) + cpo_alpha * cross-entropy of y_w per token.

    Source: Xu et al. 2024 (CPO), eq. 3 to 5; the cross-entropy per token, as TRL has it. Without a reference.
    """
    ahead = _number(BETA, hyper) * (chosen.logps - rejected.logps)
    return _smoothed(ahead, hyper) - _number(CPO_ALPHA, hyper) * chosen.means


def kto_of_pairs(chosen: Said, rejected: Said, hyper: Hyperparameters) -> torch.Tensor:
    """KTO where each prompt has a desirable and an undesirable response; the loss of a pair is the sum of both.

    The reference point of either kind is the mean log-ratio of the other kind's rows in the same micro-batch, at least
    0. Source: Ethayarajh et al. 2023 (HALOs), SimpleKTOTrainer, the first version of KTO.
    """
    points = [_point(rejected.ratios), _point(chosen.ratios)]
    return _gain(chosen.ratios, points[0], hyper) + _loss(rejected.ratios, points[1], hyper)


def kto(said: Said, elsewhere: Said, desirable: torch.Tensor, hyper: Hyperparameters) -> torch.Tensor:
    """w * (1 - sigmoid(beta * (r - z))) of desirable responses, w * (1 - sigmoid(beta * (z - r))) of the others, (N,).

    r: the log-ratio. z: how far the model has moved from the reference, the mean log-ratio of responses after other
    prompts (`elsewhere`) in the micro-batch, at least 0 and without gradient. desirable: (N,) bool. Source:
    Ethayarajh et al. 2024 (KTO), eq. 7 and 8.
    """
    point = _point(elsewhere.ratios)
    return torch.where(desirable, _gain(said.ratios, point, hyper), _loss(said.ratios, point, hyper))


PAIRS: Mapping[str, PairLoss] = {
    "dpo": dpo,
    "ipo": ipo,
    "kto": kto_of_pairs,
    "orpo": orpo,
    "simpo": simpo,
    "cpo": cpo,
}


def pair_loss(chosen: Said, rejected: Said, hyper: Hyperparameters) -> torch.Tensor:
    """The loss of N pairs that the configuration chooses, with its cross-entropy of chosen responses, (N,)."""
    losses = PAIRS[str(LOSS.of(hyper))](chosen, rejected, hyper)
    return losses + _cross_entropy(chosen, hyper)


def single_loss(said: Said, elsewhere: Said, desirable: torch.Tensor, hyper: Hyperparameters) -> torch.Tensor:
    """KTO of N single labels, with the cross-entropy of desirable responses, (N,)."""
    return kto(said, elsewhere, desirable, hyper) + desirable * _cross_entropy(said, hyper)


def _cross_entropy(said: Said, hyper: Hyperparameters) -> torch.Tensor:
    """sft_weight * mean cross-entropy per token. Source: Pang et al. 2024 (Iterative RPO), eq. 2 without its scale."""
    return -_number(SFT_WEIGHT, hyper) * said.means


def _smoothed(logits: torch.Tensor, hyper: Hyperparameters) -> torch.Tensor:
    """Cross-entropy of "the chosen one is better" at these logits, that label being wrong with some probability."""
    wrong = _number(LABEL_SMOOTHING, hyper)
    right = -(1.0 - wrong) * functional.logsigmoid(logits)
    return right - wrong * functional.logsigmoid(-logits) if wrong else right


def _log_odds(logps: torch.Tensor) -> torch.Tensor:
    """log(p / (1 - p)) of log p < 0."""
    return logps - torch.log(-torch.expm1(logps))


def _point(ratios: torch.Tensor) -> torch.Tensor:
    return ratios.detach().mean().clamp(min=0.0)


def _gain(ratios: torch.Tensor, point: torch.Tensor, hyper: Hyperparameters) -> torch.Tensor:
    return _number(DESIRABLE_WEIGHT, hyper) * (1.0 - torch.sigmoid(_number(BETA, hyper) * (ratios - point)))


def _loss(ratios: torch.Tensor, point: torch.Tensor, hyper: Hyperparameters) -> torch.Tensor:
    return _number(UNDESIRABLE_WEIGHT, hyper) * (1.0 - torch.sigmoid(_number(BETA, hyper) * (point - ratios)))


def _number(setting: Setting, hyper: Hyperparameters) -> float:
    return float(setting.of(hyper))
