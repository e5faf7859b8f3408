"""Architectures of transformers, each as a tiny random model with a batch; `docs/every-model.md` is their table.

Nothing here is about what the engine knows of them: it knows none. A row more when there is a model more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from . import _models as models

#: Rows; some models are also given rows of just so many tokens.
ROWS, TOKENS = 4, 6
ONE_PASS, TASK_PURE, REFUSED = "one pass", "task-pure only", "refused"

#: Settings that draw at random, in any configuration.
_OFF = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "dropout",
    "attention_dropout",
    "activation_dropout",
    "dropout_rate",
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
    "hidden_dropout",
    "embedding_dropout",
    "feat_proj_dropout",
    "layerdrop",
    "summary_dropout",
    "encoder_layerdrop",
    "decoder_layerdrop",
    "final_dropout",
    "classifier_dropout",
)


@dataclass(frozen=True)
class Architecture:
    """One row of the table.

    Attributes:
        build: Makes the bare model.
        targets: Endings of the modules that get LoRA.
        inputs: Makes a batch.
        answer: `one pass`, `task-pure only` or `refused`: what a mixed batch gets.
        named: What the refusal names, as a regular expression.
        parameters: `target_parameters` of the LoRA.
        outputs: The outputs that the loss is computed from; None: the first.
    """

    build: Callable[[], nn.Module]
    targets: tuple[str, ...]
    inputs: Callable[[], dict[str, Tensor]]
    answer: str = ONE_PASS
    named: str = ""
    parameters: tuple[str, ...] = ()
    outputs: tuple[str, ...] | None = None

    def sample(self) -> tuple[nn.Module, dict[str, Tensor]]:
        """The model with LoRA, and a batch."""
        more = {"target_parameters": list(self.parameters)} if self.parameters else {}
        # One that holds a dot is a regular expression, as PEFT has it.
        wanted: Any = self.targets[0] if "." in "".join(self.targets) else list(self.targets)
        return models.peft(self.build(), wanted, **more), self.inputs()

    def row_losses(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """The loss of each row `[ROWS]`, of the outputs against fixed targets."""
        out = model(**inputs)
        tensors = [out[name] for name in self.outputs] if self.outputs else [out if isinstance(out, Tensor) else out[0]]
        return sum(_row_losses(tensor) for tensor in tensors)  # type: ignore[return-value]


def _row_losses(tensor: Tensor) -> Tensor:
    wanted = torch.arange(tensor.numel()).reshape(tensor.shape).float().sin()
    return ((tensor.float() - wanted) ** 2).flatten(1).mean(1)


def _tiny(name: str, **sizes: Any) -> Callable[[], nn.Module]:
    """The class `name` of transformers with a small configuration and no dropout."""

    def build() -> nn.Module:
        cls = getattr(transformers, name)
        config_class = sizes.get("config") or cls.config_class
        given = {key: value for key, value in sizes.items() if key not in ("config", "arguments")}
        config = config_class(**given)
        for key in _OFF:
            if hasattr(config, key):
                setattr(config, key, 0.0)
        config._attn_implementation = "eager"
        return cls(config, **sizes.get("arguments", {}))

    return build


def _ids(rows: int = ROWS, tokens: int = TOKENS) -> Tensor:
    return torch.randint(3, models.VOCAB, (rows, tokens))


def _text(tokens: int = TOKENS) -> Callable[[], dict[str, Tensor]]:
    return lambda: {"input_ids": _ids(tokens=tokens)}


def _both() -> dict[str, Tensor]:
    return {"input_ids": _ids(), "decoder_input_ids": _ids(tokens=5)}


def _image(size: int = 8) -> Callable[[], dict[str, Tensor]]:
    return lambda: {"pixel_values": torch.randn(ROWS, 3, size, size)}


_ENCODER = {
    "vocab_size": models.VOCAB,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 32,
}
_DECODER = {**_ENCODER, "num_key_value_heads": 1, "use_cache": False, "pad_token_id": 0}
_BART = {
    "vocab_size": models.VOCAB,
    "d_model": 8,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 12,
    "decoder_ffn_dim": 12,
    "max_position_embeddings": 32,
    "use_cache": False,
}
_T5 = {
    "vocab_size": models.VOCAB,
    "d_model": 8,
    "d_kv": 4,
    "d_ff": 12,
    "num_layers": 2,
    "num_heads": 2,
    "use_cache": False,
    "decoder_start_token_id": 0,
}
_WHISPER = {k: v for k, v in _BART.items() if k != "max_position_embeddings"} | {
    "pad_token_id": 0,
    "num_mel_bins": 4,
    "max_source_positions": 6,
    "max_target_positions": 8,
}
_MOE = {**_DECODER, "num_experts_per_tok": 1, "head_dim": 4}
_QWEN_MOE = {
    **_DECODER,
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 8,
    "shared_expert_intermediate_size": 8,
}
_GEMMA_3N = {
    **_DECODER,
    "head_dim": 4,
    "hidden_size_per_layer_input": 4,
    "vocab_size_per_layer_input": models.VOCAB,
    "laurel_rank": 4,
    "num_hidden_layers": 4,
    "num_kv_shared_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
_DEEPSEEK = {
    **_DECODER,
    "num_key_value_heads": 2,
    "q_lora_rank": None,
    "kv_lora_rank": 4,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 4,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "first_k_dense_replace": 1,
}
_GPT_OSS = {
    **_DECODER,
    "head_dim": 4,
    "num_local_experts": 2,
    "num_experts_per_tok": 1,
    "layer_types": ["sliding_attention", "full_attention"],
}
_QWEN_3_NEXT = {
    **_QWEN_MOE,
    "head_dim": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 4,
    "layer_types": ["linear_attention", "full_attention"],
}
_MAMBA = {
    "vocab_size": models.VOCAB,
    "hidden_size": 8,
    "state_size": 4,
    "num_hidden_layers": 2,
    "use_cache": False,
}
_JAMBA = {
    **_DECODER,
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "num_experts": 2,
    "mamba_d_state": 4,
    "mamba_dt_rank": 2,
    "use_mamba_kernels": False,
}
_OPT = {
    "vocab_size": models.VOCAB,
    "hidden_size": 8,
    "ffn_dim": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "word_embed_proj_dim": 8,
    "pad_token_id": 0,
    "use_cache": False,
}
_LXMERT = {k: v for k, v in _ENCODER.items() if k != "num_hidden_layers"} | {
    "l_layers": 1,
    "x_layers": 1,
    "r_layers": 1,
    "visual_feat_dim": 5,
    "visual_pos_dim": 4,
}
_SWIN = {
    "image_size": 16,
    "patch_size": 2,
    "embed_dim": 4,
    "depths": [1, 1],
    "num_heads": [1, 2],
    "window_size": 2,
    "drop_path_rate": 0.0,
}
_FSMT = {
    **{k: v for k, v in _BART.items() if k not in ("vocab_size", "use_cache")},
    "langs": ["en", "de"],
    "src_vocab_size": models.VOCAB,
    "tgt_vocab_size": models.VOCAB,
    "use_cache": False,
}
_WAV2VEC = {
    **{k: v for k, v in _ENCODER.items() if k != "max_position_embeddings"},
    "conv_dim": (8, 8),
    "conv_stride": (2, 2),
    "conv_kernel": (3, 3),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "mask_time_prob": 0.0,
}
_PERCEIVER = {
    "d_model": 8,
    "d_latents": 8,
    "num_latents": 3,
    "num_blocks": 1,
    "num_self_attends_per_block": 1,
    "num_self_attention_heads": 2,
    "num_cross_attention_heads": 2,
}
_VIT = {k: v for k, v in _ENCODER.items() if k not in ("vocab_size", "max_position_embeddings")} | {
    "image_size": 8,
    "patch_size": 4,
}
_NO_POOLER = {"arguments": {"add_pooling_layer": False}}
_LONG = {**_ENCODER, "attention_window": [4, 4], "max_position_embeddings": 40}
_XLNET = {"vocab_size": models.VOCAB, "d_model": 8, "n_layer": 2, "n_head": 2, "d_inner": 12}


def _clip_parts() -> dict[str, Any]:
    return {
        "text_config": {**_ENCODER, "eos_token_id": 2},
        "vision_config": _VIT,
        "projection_dim": 8,
    }


def _llava() -> nn.Module:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(**_clip_parts()["vision_config"])
    text = LlamaConfig(**_DECODER)
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=1, vision_feature_layer=-1, image_seq_length=4
    )
    config._attn_implementation = "eager"
    return LlavaForConditionalGeneration(config)


def _llava_batch(*images: int) -> Callable[[], dict[str, Tensor]]:
    """Rows with so many images each: four tokens an image."""

    def build() -> dict[str, Tensor]:
        ids = _ids(len(images), 10)
        for row, count in enumerate(images):
            ids[row, : 4 * count] = 1
        return {"input_ids": ids, "pixel_values": torch.randn(sum(images), 3, 8, 8)}

    return build


_BOTH_TOWERS = r".*(vision_tower|language_model).*[qv]_proj"


def _time_first() -> nn.Module:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=False)
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.encoder(x.transpose(0, 1)).transpose(0, 1)

    return Reader()


def _of(base: str, targets: str, inputs: Callable[[], dict[str, Tensor]] | None = None, **more: Any) -> Architecture:
    """A row; what is no field of it is a setting of the model's configuration."""
    fields = {key: more.pop(key) for key in list(more) if key in Architecture.__dataclass_fields__}
    return Architecture(_tiny(base, **more), tuple(targets.split()), inputs or _text(), **fields)


ARCHITECTURES: dict[str, Architecture] = {
    "ALBERT": _of("AlbertModel", "query value ffn", embedding_size=8, **_ENCODER, **_NO_POOLER),
    "BART": _of("BartModel", "q_proj v_proj fc1", _both, **_BART),
    "BERT": _of("BertModel", "query value dense", **_ENCODER, **_NO_POOLER),
    "CLIP": _of(
        "CLIPModel",
        "q_proj v_proj fc1",
        lambda: _text()() | _image()(),
        outputs=("text_embeds", "image_embeds"),
        **_clip_parts(),
    ),
    "DeBERTa": _of("DebertaModel", "in_proj dense", type_vocab_size=0, **_ENCODER),
    "DeBERTa-v2": _of("DebertaV2Model", "query_proj value_proj dense", type_vocab_size=0, **_ENCODER),
    "DeepSeek-V3, attention": _of("DeepseekV3Model", "q_proj kv_b_proj o_proj", **_DEEPSEEK),
    "GPT-2": _of("GPT2Model", "c_attn c_proj", vocab_size=models.VOCAB, n_embd=8, n_layer=2, n_head=2, n_positions=16),
    "GPT-NeoX": _of("GPTNeoXModel", "query_key_value dense", use_cache=False, **_ENCODER),
    "Gemma 3": _of("Gemma3TextModel", "q_proj v_proj down_proj", head_dim=4, **_DECODER),
    "Gemma 3n": _of("Gemma3nTextModel", "q_proj v_proj down_proj", **_GEMMA_3N),
    "gpt-oss, attention": _of("GptOssModel", "q_proj v_proj", **_GPT_OSS),
    "Jamba": _of("JambaModel", "q_proj v_proj in_proj x_proj", **_JAMBA),
    "Llama": _of("LlamaModel", "q_proj v_proj down_proj", **_DECODER),
    "LXMERT": _of(
        "LxmertModel",
        "query value",
        lambda: _text()() | {"visual_feats": torch.randn(ROWS, 3, 5), "visual_pos": torch.rand(ROWS, 3, 4)},
        outputs=("language_output", "vision_output"),
        **_LXMERT,
    ),
    "Mamba": _of("MambaModel", "in_proj x_proj dt_proj", **_MAMBA),
    "Mixtral, attention": _of("MixtralModel", "q_proj v_proj", num_local_experts=2, **_MOE),
    "ModernBERT": _of("ModernBertModel", "Wqkv Wo Wi", pad_token_id=0, **_ENCODER),
    "NLLB-MoE, attention": _of(
        "NllbMoeModel", "q_proj v_proj", _both, num_experts=2, encoder_sparse_step=1, decoder_sparse_step=1, **_BART
    ),
    "Pegasus-X": _of(
        "PegasusXModel",
        "q_proj v_proj fc1",
        lambda: {"input_ids": _ids(tokens=8), "decoder_input_ids": _ids(tokens=5)},
        block_size=4,
        num_global_tokens=4,
        stagger_local_blocks=False,
        **_BART,
    ),
    "Perceiver": _of(
        "PerceiverModel", "query key value", lambda: {"inputs": torch.randn(ROWS, TOKENS, 8)}, **_PERCEIVER
    ),
    "Qwen2-MoE, attention": _of("Qwen2MoeModel", "q_proj v_proj", **_QWEN_MOE),
    "Qwen3": _of("Qwen3Model", "q_proj v_proj down_proj", head_dim=4, **_DECODER),
    "Qwen3-Next, mixers": _of("Qwen3NextModel", "q_proj v_proj in_proj_qkvz out_proj", **_QWEN_3_NEXT),
    "RoBERTa": _of("RobertaModel", "query value dense", pad_token_id=0, **_ENCODER, **_NO_POOLER),
    "Switch, attention": _of("SwitchTransformersModel", "q v", _both, num_experts=2, **_T5),
    "T5": _of("T5ForConditionalGeneration", "q v wo", _both, **_T5),
    "ViT": _of("ViTModel", "query value dense q_proj v_proj fc1", _image(), **_VIT, **_NO_POOLER),
    "wav2vec 2.0": _of(
        "Wav2Vec2Model", "q_proj v_proj intermediate_dense", lambda: {"input_values": torch.randn(ROWS, 60)}, **_WAV2VEC
    ),
    "Whisper": _of(
        "WhisperModel",
        "q_proj v_proj fc1",
        lambda: {"input_features": torch.randn(ROWS, 4, 12), "decoder_input_ids": _ids(tokens=5)},
        **_WHISPER,
    ),
    "Mixtral, experts": _of(
        "MixtralModel",
        "",
        num_local_experts=2,
        answer=TASK_PURE,
        named=r"experts\..*lora_[AB]",
        parameters=("mlp.experts.gate_up_proj", "mlp.experts.down_proj"),
        **_MOE,
    ),
    "DeBERTa-v2, shared position keys": _of(
        "DebertaV2Model",
        "query_proj key_proj value_proj",
        type_vocab_size=0,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        share_att_key=True,
        max_relative_positions=TOKENS,
        answer=REFUSED,
        named=r"(query|key)_proj\.lora_[AB]",
        **_ENCODER,
    ),
    "FSMT": _of("FSMTModel", "q_proj v_proj fc1", _both, answer=REFUSED, named=r"lora_[AB]", **_FSMT),
    "FSMT, as many tokens as rows": _of(
        "FSMTModel",
        "q_proj v_proj fc1",
        lambda: {"input_ids": _ids(tokens=ROWS), "decoder_input_ids": _ids(tokens=ROWS)},
        answer=REFUSED,
        named=r"q_proj\.lora_[AB]",
        **_FSMT,
    ),
    "LED, encoder": _of(
        "LEDModel",
        "query value",
        _both,
        answer=REFUSED,
        named=r"(query|value)\.lora_[AB]",
        attention_window=[4],
        max_encoder_position_embeddings=32,
        max_decoder_position_embeddings=32,
        **{key: value for key, value in _BART.items() if key != "max_position_embeddings"},
    ),
    "LLaVA, text": Architecture(_llava, (r".*language_model.*q_proj",), _llava_batch(1, 1, 1, 1)),
    "LLaVA, vision": Architecture(
        _llava,
        (_BOTH_TOWERS,),
        _llava_batch(1, 1, 1, 1),
        REFUSED,
        r"vision_tower.*lora_[AB]",
    ),
    "LLaVA, images of some rows": Architecture(
        _llava,
        (_BOTH_TOWERS,),
        _llava_batch(0, 0, 2, 2),
        REFUSED,
        r"vision_tower.*lora_[AB]",
    ),
    "Longformer": _of(
        "LongformerModel", "query value dense", _text(8), answer=REFUSED, named=r"lora_[AB]", **_LONG, **_NO_POOLER
    ),
    "Longformer, as many tokens as rows": _of(
        "LongformerModel",
        "query value",
        _text(4),
        answer=REFUSED,
        named=r"(query|value)\.lora_[AB]",
        **_LONG,
        **_NO_POOLER,
    ),
    "Nyströmformer": _of(
        "NystromformerModel",
        "query value",
        _text(8),
        answer=REFUSED,
        named=r"query\.lora_[AB]",
        num_landmarks=4,
        segment_means_seq_len=8,
        conv_kernel_size=3,
        **_ENCODER,
    ),
    "OPT, feed-forward": _of("OPTModel", "q_proj fc1", answer=REFUSED, named=r"fc1\.lora_[AB]", **_OPT),
    "Swin": _of(
        "SwinModel", "q_proj v_proj", _image(16), answer=REFUSED, named=r"proj\.lora_[AB]", **_SWIN, **_NO_POOLER
    ),
    "nn.TransformerEncoder, time first": Architecture(
        _time_first,
        ("linear1", "linear2"),
        lambda: {"x": torch.randn(ROWS, TOKENS, 8)},
        REFUSED,
        r"linear[12]\.lora_[AB]",
    ),
    "nn.TransformerEncoder, as many tokens as rows": Architecture(
        _time_first,
        ("linear1", "linear2"),
        lambda: {"x": torch.randn(ROWS, ROWS, 8)},
        REFUSED,
        r"linear[12]\.lora_[AB]",
    ),
    "XLNet": _of("XLNetModel", "layer_1 layer_2", answer=REFUSED, named=r"layer_[12]\.lora_[AB]", **_XLNET),
    "XLNet, as many tokens as rows": _of(
        "XLNetModel", "layer_1 layer_2", _text(ROWS), answer=REFUSED, named=r"layer_1\.lora_[AB]", **_XLNET
    ),
}
