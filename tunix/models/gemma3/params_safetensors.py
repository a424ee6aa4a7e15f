"""Loads a Gemma 3 from a directory of safetensors files, built as told."""

from tunix.models import safetensors_model
from tunix.models.gemma3 import hf_layout
from tunix.models.gemma3 import model as model_lib

create_model_from_safe_tensors = safetensors_model.SafetensorsLoader(
    model_lib.Gemma3, hf_layout.WEIGHTS
)
