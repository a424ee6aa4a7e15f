"""Weights of Llama models from and to files, under the names of google-tunix."""

from tunix.models import safetensors_model, safetensors_saver
from tunix.models.llama3 import hf_layout
from tunix.models.llama3 import model as model_lib

WEIGHTS = hf_layout.WEIGHTS

create_model_from_safe_tensors = safetensors_model.SafetensorsLoader(model_lib.Llama3, WEIGHTS)
save_lora_merged_model_as_safetensors = safetensors_saver.save_lora_merged_model_as_safetensors
