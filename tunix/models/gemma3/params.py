"""Weights of Gemma 3 models from and to files, under the names of google-tunix."""

from tunix.models import safetensors_saver
from tunix.utils import reference_names

save_lora_merged_model_as_safetensors = safetensors_saver.save_lora_merged_model_as_safetensors


__getattr__ = reference_names.hints(__name__)
