"""Loads a Gemma 1 or 2 from a directory of safetensors files, built as told."""

from tunix.models import safetensors_model
from tunix.models.gemma import hf_layout
from tunix.models.gemma import model as model_lib

create_model_from_safe_tensors = safetensors_model.SafetensorsLoader(
    model_lib.Gemma, hf_layout.WEIGHTS
)
