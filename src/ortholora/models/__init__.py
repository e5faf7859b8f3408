"""Backbone, LoRA adapter and task heads; saving and loading."""

from ortholora.models.adapted import AdaptedModel as AdaptedModel
from ortholora.models.answering import Answering as Answering
from ortholora.models.backbone import check_is_language_model as check_is_language_model
from ortholora.models.backbone import load_backbone as load_backbone
from ortholora.models.backbone import load_encoder as load_encoder
from ortholora.models.backbone import load_tokenizer as load_tokenizer
from ortholora.models.backbone import locate as locate
from ortholora.models.heads import HeadSpec as HeadSpec
from ortholora.models.language import LanguageModel as LanguageModel
from ortholora.models.language import LanguageSpec as LanguageSpec
from ortholora.models.multitask import MultiTaskModel as MultiTaskModel
from ortholora.models.multitask import add_lora as add_lora
from ortholora.models.packed import has_flash_attention as has_flash_attention
from ortholora.models.packed import is_packed as is_packed
from ortholora.models.predictor import Prediction as Prediction
from ortholora.models.predictor import Predictor as Predictor
from ortholora.models.predictor import load as load
from ortholora.models.saving import ModelCard as ModelCard
from ortholora.models.saving import load_card as load_card
from ortholora.models.saving import load_model as load_model
from ortholora.models.saving import load_weights as load_weights
from ortholora.models.saving import save_model as save_model
from ortholora.models.saving import wrap as wrap
