"""Backbone, LoRA adapter and task heads; saving and loading."""

from ortholora.models.backbone import load_encoder as load_encoder
from ortholora.models.backbone import load_tokenizer as load_tokenizer
from ortholora.models.backbone import locate as locate
from ortholora.models.folder import ModelCard as ModelCard
from ortholora.models.folder import load_card as load_card
from ortholora.models.folder import load_model as load_model
from ortholora.models.folder import load_weights as load_weights
from ortholora.models.folder import save_model as save_model
from ortholora.models.heads import HeadSpec as HeadSpec
from ortholora.models.multitask import MultiTaskModel as MultiTaskModel
from ortholora.models.multitask import add_lora as add_lora
from ortholora.models.packed import has_flash_attention as has_flash_attention
from ortholora.models.packed import is_packed as is_packed
from ortholora.models.predictor import Prediction as Prediction
from ortholora.models.predictor import Predictor as Predictor
from ortholora.models.predictor import load as load
