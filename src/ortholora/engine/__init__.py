"""The engine: capture, Gram, rules, resolve. Needs torch and peft only."""

from ortholora.engine.ortho_lora import OrthoLora as OrthoLora
from ortholora.engine.rules import Ortho as Ortho
from ortholora.engine.rules import Rule as Rule
from ortholora.engine.rules import RuleContext as RuleContext
from ortholora.engine.rules import Sum as Sum
from ortholora.engine.stats import StepStats as StepStats
