"""Weights of Qwen 2 models from and to files, under the names of google-tunix."""

from tunix.models import safetensors_model, safetensors_saver
from tunix.models.qwen2 import hf_layout
from tunix.models.qwen2 import model as model_lib

WEIGHTS = hf_layout.WEIGHTS

create_model_from_safe_tensors = safetensors_model.SafetensorsLoader(model_lib.Qwen2, WEIGHTS)
save_lora_merged_model_as_safetensors = safetensors_saver.save_lora_merged_model_as_safetensors
