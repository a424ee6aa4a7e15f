"""The ``README.md`` of an exported model: what it is, what it was made from, how to load it."""

import dataclasses
import re

from tunix import version


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What a reader of an exported model wants to know."""

    base_model: str | None = None
    """Hub id or path of the model that was trained."""

    training: str | None = None
    """One sentence about the training, e.g. ``Trained with `tunix sft` for 300 steps.``"""

    auto_class: str = "AutoModelForCausalLM"
    """What of transformers loads a full model."""

    def render(self, name: str, *, num_parameters: int, dtype: str) -> str:
        """Return the card of a full model called ``name``."""
        lines = [
            *self.front_matter("transformers"),
            f"# {name}",
            "",
            *self.facts(),
            f"- Parameters: {num_parameters:,}, stored as {dtype}",
            "",
            "```python",
            f"from transformers import {self.auto_class}, AutoTokenizer",
            "",
            f'model = {self.auto_class}.from_pretrained("path/to/{name}")',
            f'tokenizer = AutoTokenizer.from_pretrained("path/to/{name}")',
            "```",
            "",
        ]
        return "\n".join(lines)

    def render_adapter(self, name: str) -> str:
        """Return the card of an adapter called ``name``."""
        lines = [
            *self.front_matter("peft"),
            f"# {name}",
            "",
            *self.facts(),
            "",
            "```python",
            "from peft import PeftModel",
            "",
            f'model = PeftModel.from_pretrained(base_model, "path/to/{name}")',
            "```",
            "",
        ]
        return "\n".join(lines)

    def front_matter(self, library: str) -> list[str]:
        """Return the block that the hub reads; a local path is no base model there."""
        lines = ["---", f"library_name: {library}", "tags:", "- tunix"]
        if self.base_model is not None and re.fullmatch(r"[\w.-]+/[\w.-]+", self.base_model):
            lines.append(f"base_model: {self.base_model}")
        return [*lines, "---", ""]

    def facts(self) -> list[str]:
        """Return one line for each thing known about the model's origin."""
        lines = [f"- Written by: tunix {version.__version__}"]
        if self.training is not None:
            lines.insert(0, f"- Training: {self.training}")
        if self.base_model is not None:
            lines.insert(0, f"- Base model: `{self.base_model}`")
        return lines
