"""Mutated configurations, and settings of `--set`."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import yaml
from judging import Case, Source, flip, paths, put

from ortholora.config.file import dump_config, load_config, parse_override
from ortholora.errors import UserError
from ortholora.models.adapter import add_lora
from ortholora.models.backbone import load_encoder
from ortholora.runs.arguments import training_arguments
from ortholora.study.methods import check_rule, methods_of
from ortholora.study.sweep.values import check_sweep
from tiny import tiny_settings

#: Where a number belongs; those with a bound of their own below 10^9, and those that are whole.
BOUNDED = [
    "max_length", "seed", "data_seed", "lora.r", "lora.alpha", "lora.dropout", "head_dropout", "mixing.rows_per_task",
    "mixing.temperature", "training.steps", "training.eval_every", "training.save_every", "training.log_every",
    "training.patience", "study.bootstrap",
]  # fmt: skip
FREE = ["training.learning_rate", "training.weight_decay", "training.max_grad_norm", "tasks.0.weight"]
TEXTS = ["backbone", "revision", "rule", "tasks.0.name", "tasks.0.train", "tasks.0.label", "tasks.0.only"]
#: YAML that no number, no text, and nothing at all may be.
NO_NUMBER = [
    "true", "no", "1:30", "!!int 1:30", ".nan", ".inf", "-.inf", "-1", "-4294967296", "[1]", "{a: 1}", "word", "''",
    "2020-01-01", '"\\0"', "1e999", "0x", "!!binary aGk=", "9" * 30, "-0.5", "1 000",
]  # fmt: skip
TOO_LARGE = ["1000000000000", "4294967296000", "1e308", "99999999999999"]
NO_TEXT = [
    "5",
    "true",
    "~x: 1",
    "2020-01-01",
    '"a\\0b"',
    '"\\e[31m"',
    '"\\ud800"',
    "{}",
    "!!binary aGk=",
    "1.5",
    "!!set {a}",
]
NOTHING = [
    "2020-13-45", "!!int x", "!!float x", "!!bool maybe", "!!timestamp x", '"\\U00110000"', "*nobody", "&a [*a]",
    "[" * 3000, "{a: " * 3000, "[" * 60 + "]" * 60, "!!python/name:os.system", "'", '"', "%", "@", "[1", "{a", "\t- x",
    "!!int ''", "9" * 5000, "\x07", "\ud800",
]  # fmt: skip
#: What may or may not be right.
ANYTHING = [
    "null", "0", "1", "2", "0.5", "1e-3", "''", "x", "[]", "{}", "[x, x]", "{x: 1}", "ortho", "joint", "x" * 5000,
    "[1, 2, 3]", "../..", "~", "~nobody/x", "package:x", "a:b", "gradnorm(alpha=2)", "gradnorm(", "os:system", "é",
    "{name: a, rule: sum}", "[single, {name: b, set: {training.steps: 0}}]", "'*'", "all-linear", "2020-01-01",
    "{training.learning_rate: [1, 2]}", "[{a: [1, {b: 2020-01-01}]}]", "&a x", "010", "1_000", "0x10", "/dev/full",
]  # fmt: skip
#: Arguments of other libraries.
PASSED_ON = [
    "training.arguments.weight_decay", "training.arguments.optim", "training.arguments.lr_scheduler_type",
    "training.arguments.adam_beta1", "training.arguments.max_grad_norm", "training.arguments.logging_steps",
    "training.arguments.warmup_steps", "training.arguments.bf16", "training.arguments.report_to",
    "lora.options.lora_dropout", "lora.options.bias", "lora.options.rank_pattern", "lora.options.init_lora_weights",
    "lora.options.modules_to_save", "lora.options.alpha_pattern", "lora.options.layers_to_transform",
]  # fmt: skip
HERE = "HeReHeRe"


def sources(folder: Path) -> list[Source]:
    """The ways to mutate a configuration; `folder` holds a backbone and gets the files."""
    base = tiny_settings(folder, study={"methods": ["single", "joint", "ortho"]}, training={"warmup_steps": 1})
    base |= {"seed": 1, "data_seed": 2, "head_dropout": 0.1, "revision": None, "rule": "ortho"}
    path = folder / "mutated.yaml"
    known = list(paths(base))

    def case(what: str, text: str, nonsense: bool, overrides: list[str] | None = None) -> Case:
        return Case(what, lambda: _use(path, text.encode("utf-8", "surrogatepass"), overrides or [], folder), nonsense)

    def placed(key: tuple[Any, ...], snippet: str, nonsense: bool) -> Case:
        text = yaml.safe_dump(put(base, key, HERE), sort_keys=False).replace(HERE, snippet)
        return case(f"{'.'.join(map(str, key))}: {snippet[:60]!r}", text, nonsense)

    def value(draw: random.Random) -> Case:
        key, snippet, nonsense = _choose(draw)
        return placed(_path(base, key), snippet, nonsense)

    def anywhere(draw: random.Random) -> Case:
        return placed(draw.choice(known), draw.choice(ANYTHING + NO_NUMBER + NO_TEXT), False)

    def removed(draw: random.Random) -> Case:
        key = draw.choice(known)
        return case(
            f"without {key}", yaml.safe_dump(put(base, key, ...), sort_keys=False), key in [("backbone",), ("tasks",)]
        )

    def damaged(draw: random.Random) -> Case:
        text = yaml.safe_dump(base, sort_keys=False)
        what, content = flip(draw, text.encode())
        return Case(what, lambda: _use(path, content, [], folder))

    def override(draw: random.Random) -> Case:
        key, snippet, nonsense = _choose(draw)
        # An empty value is null, and null is the default of some.
        return case(f"--set {key}={snippet[:60]!r}", yaml.safe_dump(base), nonsense, [f"{key}={snippet}"])

    def passed_on(draw: random.Random) -> Case:
        key = draw.choice(PASSED_ON)
        snippet = draw.choice([*ANYTHING, "", "true", "-1", "'1'", ".nan", "1.5"])
        return case(f"--set {key}={snippet[:60]!r}", yaml.safe_dump(base), False, [f"{key}={snippet}"])

    def many(draw: random.Random) -> Case:
        keys = "".join(f"k{draw.random()}: 1\n" for _ in range(draw.choice([2, 30, 1000])))
        return case("unknown keys", yaml.safe_dump(base) + keys, True)

    return [value, value, value, anywhere, anywhere, removed, damaged, override, override, passed_on, passed_on, many]


def _choose(draw: random.Random) -> tuple[str, str, bool]:
    """A key, what is put there, and whether only a refusal is right."""
    key = draw.choice(BOUNDED + FREE + TEXTS)
    wrong = NO_TEXT + NOTHING if key in TEXTS else NO_NUMBER + NOTHING + (TOO_LARGE if key in BOUNDED else [])
    return (key, draw.choice(wrong), True) if draw.random() < 0.7 else (key, draw.choice(ANYTHING), False)


def _path(base: Any, key: str) -> tuple[Any, ...]:
    """A dotted key as a path; sections that are not there yet are added to the base."""
    parts = [int(part) if part.isdigit() else part for part in key.split(".")]
    node = base
    for part in parts[:-1]:
        if isinstance(node, dict):
            node.setdefault(part, {})
        node = node[part]
    return tuple(parts)


def _use(path: Path, content: bytes, overrides: list[str], folder: Path) -> None:
    """All that `compare` does with a configuration before it reads data, and building the adapter."""
    path.write_bytes(content)
    for override in overrides:
        parse_override(override)
    config = load_config(path, overrides)
    again = folder / "again.yaml"
    again.write_text(dump_config(config), encoding="utf-8")
    if load_config(again) != config:
        raise AssertionError("what is saved of the configuration is another one")
    check_rule(config.rule)
    methods = methods_of(config)
    if config.study.sweep is not None:
        check_sweep(config, methods)
    training_arguments(config, folder / "checkpoints", 0, 1)
    if config.backbone != str(folder / "backbone"):
        raise UserError("another backbone", expected="a", found="b", todo="c")  # would ask the hub
    options = {"r": config.lora.r, "lora_alpha": config.lora.alpha, "lora_dropout": config.lora.dropout}
    if config.lora.r <= 64 and config.dtype == "float32":
        import torch

        bare = load_encoder(config.backbone, torch.float32)
        add_lora(bare, {**options, "target_modules": config.lora.target_modules, **config.lora.options}, 0)
