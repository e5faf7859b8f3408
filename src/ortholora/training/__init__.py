"""The Trainer, metrics, and one run from configuration to result."""

from ortholora.training.mixin import ResolveMixin as ResolveMixin
from ortholora.training.trainer import OrthoTrainer as OrthoTrainer
