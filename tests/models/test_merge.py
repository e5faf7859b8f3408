"""Merging single adapters: the merged update is what it is said to be, on a plain PEFT model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import BertConfig, BertModel

from ortholora.config.sections import MergeSection
from ortholora.errors import UserError
from ortholora.models.merge import Kind, Merge, check_mergeable, merge_adapters

TASKS = ("a", "b.c", "d")  # a name may hold a dot
TARGETS = ["query", "dense"]


def bare() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
        return BertModel(BertConfig(vocab_size=30, max_position_embeddings=16, **sizes), add_pooling_layer=False).eval()


def save_singles(folder: Path, **options: dict) -> dict[str, Path]:
    """An adapter for each task with A and B of its own; `options` by task, or for all under `every`."""
    found = {}
    for index, task in enumerate(TASKS):
        keys = {"r": 2, "lora_alpha": 6, "target_modules": TARGETS, **options.get("every", {}), **options.get(task, {})}
        model = get_peft_model(bare(), LoraConfig(**keys))
        draw = torch.Generator().manual_seed(index)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_" in name:
                    weight.normal_(generator=draw)
        model.save_pretrained(str(folder / task), save_embedding_layers=False)
        found[task] = folder / task
    return found


def deltas_of(folder: Path) -> dict[str, torch.Tensor]:
    """The slow reference: what PEFT itself adds to each weight of the backbone when it merges one adapter into it."""
    before = {name: weight.clone() for name, weight in bare().named_parameters()}
    after = PeftModel.from_pretrained(bare(), str(folder)).merge_and_unload()
    found = {name: (weight - before[name]).detach() for name, weight in after.named_parameters()}
    return {name: delta for name, delta in found.items() if bool((delta != 0).any())}


def merged_deltas(folders: dict[str, Path], out: Path, kind: Kind = "linear", seed: int = 0, **section) -> dict:
    """Merge, save, load onto a bare backbone with plain PEFT, and read what it adds to the weights."""
    how = Merge.of(kind, MergeSection(**section), TASKS)
    merge_adapters(bare(), folders, how, seed).model.save_pretrained(str(out), save_embedding_layers=False)
    return deltas_of(out)


def check_equal(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, delta in expected.items():
        torch.testing.assert_close(found[name], delta, atol=2e-5, rtol=1e-4)


PATTERNS = {"rank_pattern": {"layer.0.*query": 3}, "alpha_pattern": {"layer.1.*query": 1}}
VARIED = {
    "plain": {},
    "rank-stabilised": {"every": {"use_rslora": True}},
    "other ranks": {"a": {"r": 1}, "d": {"r": 5, "use_rslora": True}},
    "patterns": {"b.c": PATTERNS},
    "other modules": {"a": {"target_modules": ["query"]}, "d": {"target_modules": ["value"], "r": 3}},
}


@pytest.mark.parametrize("options", VARIED.values(), ids=VARIED)
def test_linear_is_the_weighted_sum_of_the_updates(tmp_path, options):
    folders = save_singles(tmp_path, **options)
    found = merged_deltas(folders, tmp_path / "merged", scale=0.7, weights={"d": 2.0})
    expected: dict[str, torch.Tensor] = {}
    for task, weight in zip(TASKS, (0.7, 0.7, 1.4), strict=True):
        for name, delta in deltas_of(folders[task]).items():
            expected[name] = expected.get(name, torch.zeros(())) + weight * delta
    check_equal(found, expected)


def test_adding_up_factors_would_be_something_else(tmp_path):
    """What is refused here: `Σ B` and `Σ A`, merged each by itself, of adapters with other A's."""
    folders = save_singles(tmp_path)
    parts = [PeftModel.from_pretrained(bare(), str(folder)).state_dict() for folder in folders.values()]
    name = "base_model.model.encoder.layer.0.attention.self.query.lora_{}.default.weight"
    a, b = (sum(part[name.format(letter)] for part in parts) for letter in "AB")
    true = merged_deltas(folders, tmp_path / "merged", scale=1.0)["encoder.layer.0.attention.self.query.weight"]
    assert (3 * b @ a - true).norm() > 0.5 * true.norm()


def test_merging_one_adapter_gives_it_back(tmp_path):
    folders = save_singles(tmp_path, every={"use_rslora": True})
    check_equal(merged_deltas({"a": folders["a"]}, tmp_path / "merged", scale=1.0), deltas_of(folders["a"]))


def literal_ties(tasks: list[dict[str, torch.Tensor]], density: float) -> dict[str, torch.Tensor]:
    """Algorithm 1 of the paper, value by value on the flat update."""
    flat = [torch.cat([delta.flatten() for delta in task.values()]) for task in tasks]
    trimmed = []
    for values in flat:
        order = values.abs().argsort(descending=True)[: round(density * len(values))]
        trimmed.append([float(v) if i in set(order.tolist()) else 0.0 for i, v in enumerate(values)])
    merged = []
    for column in zip(*trimmed, strict=True):
        sign = 1 if sum(column) > 0 else -1
        agreeing = [value for value in column if value * sign > 0]
        merged.append(sum(agreeing) / len(agreeing) if agreeing else 0.0)
    sizes = [delta.numel() for delta in tasks[0].values()]
    parts = torch.tensor(merged).split(sizes)
    return {name: part.reshape(delta.shape) for (name, delta), part in zip(tasks[0].items(), parts, strict=True)}


def test_ties_is_the_papers_algorithm(tmp_path):
    folders = save_singles(tmp_path, every={"target_modules": ["query"]})
    found = merged_deltas(folders, tmp_path / "merged", "ties", density=0.3, scale=0.5, rank=16)
    expected = literal_ties([deltas_of(folder) for folder in folders.values()], 0.3)
    check_equal(found, {name: 0.5 * delta for name, delta in expected.items()})


def test_dare_keeps_a_share_and_rescales(tmp_path):
    folders = {"a": save_singles(tmp_path)["a"]}
    whole, found = (
        deltas_of(folders["a"]),
        merged_deltas(folders, tmp_path / "m", "dare", density=0.25, scale=1, rank=24),
    )
    ratios = torch.cat([(found[name] / delta).flatten() for name, delta in whole.items()])
    kept = ratios > 2
    torch.testing.assert_close(ratios[kept], torch.full_like(ratios[kept], 4.0), atol=0.02, rtol=0)
    assert float(kept.float().mean()) == pytest.approx(0.25, abs=0.03)


def test_dare_is_drawn_from_the_seed_alone(tmp_path):
    folders = save_singles(tmp_path)
    torch.manual_seed(1)
    one = merged_deltas(folders, tmp_path / "one", "dare", seed=3)
    torch.manual_seed(2)
    check_equal(merged_deltas(dict(reversed(folders.items())), tmp_path / "two", "dare", seed=3), one)
    other = merged_deltas(folders, tmp_path / "three", "dare", seed=4)
    assert any(not torch.allclose(one[name], other[name]) for name in one)


def test_density_one_keeps_all(tmp_path):
    folders = save_singles(tmp_path)
    linear = merged_deltas(folders, tmp_path / "linear", scale=0.4)
    check_equal(merged_deltas(folders, tmp_path / "dare", "dare", density=1.0), linear)  # of rank 6, which suffices


def test_the_rank_is_the_nearest_and_what_it_lost_is_said(tmp_path):
    folders = save_singles(tmp_path)
    how = Merge.of("ties", MergeSection(rank=2), TASKS)
    merged = merge_adapters(bare(), folders, how, 0)
    whole = merged_deltas(folders, tmp_path / "whole", "ties", rank=24)
    cut = merged_deltas(folders, tmp_path / "cut", "ties", rank=2)
    lost = sum(float((whole[name] - cut[name]).square().sum()) for name in whole)
    for name, delta in whole.items():
        best = float(torch.linalg.svdvals(delta)[2:].square().sum())
        assert float((delta - cut[name]).square().sum()) == pytest.approx(best, rel=1e-3)
    assert merged.rank == 2
    assert merged.kept == pytest.approx(1 - lost / sum(float(delta.square().sum()) for delta in whole.values()))
    exact = merge_adapters(bare(), folders, Merge.of("linear", MergeSection(), TASKS), 0)
    assert (exact.rank, exact.kept) == (6, 1.0)


REFUSED = {
    "DoRA": ({"use_dora": True}, "DoraLinear in base_model"),
    "bias": ({"lora_bias": True}, "lora_B.default.bias"),
    "embedding": ({"target_modules": ["word_embeddings"]}, "another kind"),
    "backbone's bias": ({"bias": "all"}, "a trained weight besides"),
    "PiSSA": ({"init_lora_weights": "pissa"}, "changes the backbone"),
    "saved modules": ({"modules_to_save": ["LayerNorm"]}, "a trained weight besides"),
}


@pytest.mark.parametrize(("options", "found"), REFUSED.values(), ids=REFUSED)
def test_what_is_more_than_a_and_b_is_refused(options, found):
    with pytest.raises(UserError) as caught:
        check_mergeable(get_peft_model(bare(), LoraConfig(**{"r": 2, "target_modules": TARGETS, **options})))
    assert found in caught.value.found
    assert "remove the merges" in caught.value.todo


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"rank_pattern": {"query": 3}}, {"lora_dropout": 0.1}])
def test_plain_lora_is_not(options):
    check_mergeable(get_peft_model(bare(), LoraConfig(**{"r": 2, "target_modules": TARGETS, **options})))


def test_a_missing_adapter_is_named(tmp_path):
    folders = save_singles(tmp_path)
    (folders["d"] / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"d/adapter_model\.safetensors is damaged(?s:.*)no such file"):
        merge_adapters(bare(), folders, Merge.of("linear", MergeSection(), TASKS), 0)
