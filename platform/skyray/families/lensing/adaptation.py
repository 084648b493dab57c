"""Losses of the two stages: supervised on the source, then unsupervised adaptation to the target.

A batch mixes both domains: ``domain`` 0 is the source, 1 the target, ``source_rows`` and
``target_rows`` say where (`domain_rows`); ``label_index`` is −1 for every target row. Each loss
returns the scalar and its metrics. In validation these hold, as means over all rows of the batch so
that they add up whatever the batches hold:

- ``selection``: what chooses the epoch without a label of the target: the mutual information
  between image and predicted class on the target, E[KL(p ‖ mean p)] in units of ln K. It is high
  where predictions are sure and use all classes, and falls when they collapse onto one. Methods
  that train one network for both domains add the accuracy on the source.
- ``oracle``: right answers on the target. It needs the target's labels: an oracle, shown beside
  and used only by ``selection=as_published``.
- ``target_share``: share of target rows, by which both are to be divided.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch.func import functional_call
from torch.nn import functional

from skyray.config import ConfigError
from skyray.families.base import Tensors
from skyray.families.lensing.networks import LensingModel
from skyray.families.lensing.recipes import LensingRecipe
from skyray.transforms.augment import augment

SOURCE, TARGET = 0, 1
_PRIOR_MEMORY = 0.9
Metrics = dict[str, torch.Tensor]


def domain_rows(batch: Tensors) -> Tensors:
    """Return the row numbers of both domains, for `Stage.arrange`.

    The host knows then how many there are, and no step waits for the device to count them.
    """
    domain = batch["domain"]
    return {
        "source_rows": torch.nonzero(domain == SOURCE)[:, 0],
        "target_rows": torch.nonzero(domain == TARGET)[:, 0],
    }


class SourceLoss:
    """Cross-entropy on labelled source images."""

    def __init__(self, recipe: LensingRecipe):
        self.recipe = recipe

    def __call__(self, model: LensingModel, batch: Tensors) -> tuple[torch.Tensor, Metrics]:
        image, label = batch["image"], batch["label_index"]
        if model.training and self.recipe.augment.active:
            image = augment(image, self.recipe.augment)
        _, logits = model.source(image)
        loss = functional.cross_entropy(logits.float(), label)
        return loss, {"accuracy": (logits.argmax(1) == label).float().mean().detach()}


class AdaptationLoss(ABC):
    """What all methods share: the two halves of a batch, and the choice of the epoch."""

    one_network = True  # of both domains

    def __init__(self, recipe: LensingRecipe):
        self.recipe, self.config = recipe, recipe.adaptation

    def __call__(self, model: LensingModel, batch: Tensors) -> tuple[torch.Tensor, Metrics]:
        source, target = batch["source_rows"], batch["target_rows"]
        least = 2 if model.training else 1  # norms need two rows
        if len(source) < least or len(target) < least:
            loss = sum(p.sum() for p in model.parameters() if p.requires_grad) * 0.0
            if model.training:
                return loss, {}
        else:
            loss, metrics, target_logits = self.loss(model, batch, source, target)
            if model.training:
                mean = target_logits.detach().float().softmax(1).mean(0)
                model.prior.lerp_(mean, 1.0 - _PRIOR_MEMORY)
                return loss, metrics
        return loss.detach(), self._choice(model, batch, source, target)

    @abstractmethod
    def loss(
        self, model: LensingModel, batch: Tensors, source: torch.Tensor, target: torch.Tensor
    ) -> tuple[torch.Tensor, Metrics, torch.Tensor]:
        """Return loss, metrics and the target's logits; `source`, `target` are row numbers."""

    @torch.no_grad()
    def _choice(self, model: LensingModel, batch: Tensors, source, target) -> Metrics:
        rows, classes = len(batch["domain"]), len(model.prior)
        zero = model.prior.new_zeros(())
        information = oracle = right = zero
        if len(target):
            logits = model.adapted(batch["image"][target])[1].float()
            log_p = logits.log_softmax(1)
            gain = (log_p.exp() * (log_p - model.prior.clamp(min=1e-6).log())).sum()
            information = gain / (rows * math.log(classes))
            known = batch["oracle_index"][target]
            oracle = (logits.argmax(1) == known).sum() / rows
        if len(source) and self.one_network:
            logits = model.adapted(batch["image"][source])[1]
            right = (logits.argmax(1) == batch["label_index"][source]).sum() / rows
        return {
            "selection": information + right,
            "oracle": oracle,
            "target_share": zero + len(target) / rows,
        }

    def _classified(self, logits: torch.Tensor, batch: Tensors, source) -> torch.Tensor:
        return functional.cross_entropy(logits.float(), batch["label_index"][source])


class AddaLoss(AdaptationLoss):
    """Adversarial discriminative adaptation (Tzeng et al. 2017, arXiv:1702.05464).

    The published step trains the discriminator, then the encoder against it. Here both losses come
    from one pass and are summed: the discriminator sees detached features, the encoder a
    discriminator with detached weights, so that neither takes part in the other's gradient. The
    encoder then plays against the discriminator of before the step instead of after it, which at
    rates of 1e-4 is the same game one step later. Source features come from the frozen source
    encoder, computed once; the classifier is the source's and stays.
    """

    one_network = False

    def loss(self, model, batch, source, target):
        image = batch["image"][target]
        if model.training and self.recipe.switch("adda_step") == "as_published":
            with torch.no_grad():
                shown = model.adapted.encoder(image)
            features = model.adapted.encoder(image)
        else:
            features = model.adapted.encoder(image)
            shown = features.detach()
        guessed = model.adapted.classifier(features.detach())
        known = batch["source_features"][source].to(shown.dtype)
        logits = model.discriminator(torch.cat([known, shown])).float()
        domain = logits.new_zeros(len(logits), dtype=torch.long)
        domain[len(known) :] = TARGET
        discriminator = functional.cross_entropy(logits, domain)
        fixed = {name: p.detach() for name, p in model.discriminator.named_parameters()}
        fooled = functional_call(model.discriminator, fixed, (features,)).float()
        encoder = functional.cross_entropy(fooled, torch.zeros_like(domain[len(known) :]))
        right = (logits.argmax(1) == domain).float().mean()
        return (
            discriminator + encoder,
            {
                "discriminator_loss": discriminator.detach(),
                "encoder_loss": encoder.detach(),
                "discriminator_accuracy": right.detach(),
            },
            guessed,
        )


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(context, features, weight):
        context.weight = weight
        return features.view_as(features)

    @staticmethod
    def backward(context, gradient):
        return -context.weight * gradient, None


class DannLoss(AdaptationLoss):
    """Domain-adversarial training with a reversed gradient (Ganin et al. 2016, JMLR 17, 59)."""

    def __init__(self, recipe: LensingRecipe):
        super().__init__(recipe)
        self.weight = 0.0

    def at_epoch(self, epoch: int) -> None:
        """Raise the weight of the reversed gradient from 0, as published."""
        done = (epoch + 1) / self.recipe.train_adaptation.epochs
        self.weight = self.config.domain_weight * (2.0 / (1.0 + math.exp(-10.0 * done)) - 1.0)

    def loss(self, model, batch, source, target):
        features, logits = model.adapted(batch["image"])
        classified = self._classified(logits[source], batch, source)
        domains = model.discriminator(_Reversed.apply(features, self.weight)).float()
        both = torch.cat([source, target])
        adversarial = functional.cross_entropy(domains[both], batch["domain"][both])
        return (
            classified + adversarial,
            {
                "class_loss": classified.detach(),
                "domain_loss": adversarial.detach(),
            },
            logits[target],
        )


class CoralLoss(AdaptationLoss):
    """Covariances of both domains' features drawn together (Sun & Saenko 2016, Deep CORAL)."""

    def loss(self, model, batch, source, target):
        features, logits = model.adapted(batch["image"])
        classified = self._classified(logits[source], batch, source)
        distance = coral_distance(features[source].float(), features[target].float())
        return (
            classified + self.config.coral_weight * distance,
            {
                "class_loss": classified.detach(),
                "coral": distance.detach(),
            },
            logits[target],
        )


def coral_distance(source_NF: torch.Tensor, target_MF: torch.Tensor) -> torch.Tensor:
    """Return ‖C_s − C_t‖² / (4 F²) of the covariances (Sun & Saenko 2016, eq. 1)."""
    width = source_NF.shape[1]
    difference = _covariance(source_NF) - _covariance(target_MF)
    return difference.square().sum() / (4 * width**2)


def _covariance(features_NF: torch.Tensor) -> torch.Tensor:
    """Return what ``torch.cov`` gives, [F, F]; that one asks the device for numbers first."""
    centred = features_NF - features_NF.mean(0)
    return centred.T @ centred / (len(features_NF) - 1)


class SelfEnsemblingLoss(AdaptationLoss):
    """A student agrees on target images with its own running mean (French et al. 2018).

    Both see the images nudged and flipped, each its own way; only what the teacher is sure of
    counts. The teacher answers afterwards.
    """

    def loss(self, model, batch, source, target):
        if model.training:
            self._follow(model)
        changed = self._nudged if model.training else lambda image: image
        _, known = model.student(changed(batch["image"][source]))
        _, guessed = model.student(changed(batch["image"][target]))
        with torch.no_grad():
            _, taught = model.adapted(changed(batch["image"][target]))
        classified = self._classified(known, batch, source)
        student, teacher = guessed.float().softmax(1), taught.float().softmax(1)
        sure = (teacher.max(dim=1).values > self.config.confidence).float()
        consistency = ((student - teacher).square().mean(1) * sure).mean()
        even = torch.full_like(student[0], 1.0 / student.shape[1])
        mean = student.mean(0).clamp(1e-6, 1 - 1e-6)
        balance = functional.binary_cross_entropy(mean.float(), even) * sure.mean()
        weighted = consistency + self.config.balance_weight * balance
        return (
            classified + self.config.consistency_weight * weighted,
            {
                "class_loss": classified.detach(),
                "consistency": consistency.detach(),
                "sure_share": sure.mean(),
            },
            taught,
        )

    def _nudged(self, image: torch.Tensor) -> torch.Tensor:
        return augment(image, self.config.augment)

    @torch.no_grad()
    def _follow(self, model: LensingModel) -> None:
        """Move the teacher towards the student as the last step left it."""
        memory, new = self.config.teacher_memory, model.student.state_dict()
        for name, old in model.adapted.state_dict().items():
            if old.is_floating_point():
                old.lerp_(new[name], 1.0 - memory)
            else:
                old.copy_(new[name])


LOSSES: dict[str, type[AdaptationLoss]] = {
    "adda": AddaLoss,
    "dann": DannLoss,
    "coral": CoralLoss,
    "self_ensembling": SelfEnsemblingLoss,
}
_LEARN = {
    "adda": ("adapted.encoder.", "discriminator."),
    "dann": ("adapted.", "discriminator."),
    "coral": ("adapted.",),
    "self_ensembling": ("student.",),
}


def learns(method: str) -> Callable[[str], bool]:
    """Return which parameters of a `LensingModel` a method trains, by name."""
    return lambda name: name.startswith(_LEARN[method])


def begin(recipe: LensingRecipe) -> Callable[[LensingModel, Tensors], None]:
    """Return what happens before the first epoch of adaptation; it refuses a missing domain."""

    def prepare(model: LensingModel, rows: Tensors) -> None:
        for domain, survey in ((SOURCE, recipe.source), (TARGET, recipe.target)):
            if not (rows["domain"] == domain).any():
                raise ConfigError(
                    f"adaptation: expected training rows of survey {survey!r}, found none; set "
                    "source and target to surveys of this dataset"
                )
        model.begin_adaptation()

    return prepare
