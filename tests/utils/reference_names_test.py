"""Names of google-tunix: what can be imported, and what is said of the rest."""

import dataclasses
import importlib
import pickle
import subprocess
import sys

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import tunix
from tests import tiny_llama
from tests.repo import source
from tests.rl import helpers
from tunix.cli.utils import model as cli_models
from tunix.generate import utils as generate_utils
from tunix.models import automodel, sources
from tunix.models.qwen2 import model as qwen2
from tunix.rl import algorithm_config
from tunix.rl.grpo import grpo_learner
from tunix.rl.ppo import ppo_learner
from tunix.sft import peft_trainer
from tunix.utils import compat, config, env_utils, reference_names, script_utils

KEPT = [
    "tunix.cli.utils.model.apply_lora_to_model",
    "tunix.cli.utils.model.create_model",
    "tunix.cli.utils.model.create_tokenizer",
    "tunix.generate.tokenizer_adapter.Tokenizer",
    "tunix.generate.tokenizer_adapter.TokenizerAdapter",
    "tunix.generate.tokenizer_adapter.TokenizerType",
    "tunix.generate.tokenizer_files.write",
    "tunix.generate.utils.build_positions_from_mask",
    "tunix.generate.utils.find_first_eos_idx",
    "tunix.generate.utils.find_first_non_pad_idx",
    "tunix.generate.utils.find_last_non_pad_idx",
    "tunix.generate.utils.make_causal_attn_mask",
    "tunix.generate.utils.next_power_of_2",
    "tunix.generate.utils.pad_to_length",
    "tunix.models.automodel.ModelSource",
    "tunix.models.gemma.model.RematConfig",
    "tunix.models.gemma3.model.RematConfig",
    "tunix.models.gemma3.utils.get_attention_mask",
    "tunix.models.gemma3.utils.make_causal_bidirectional_attention_mask",
    "tunix.models.llama3.model.RematConfig",
    "tunix.models.qwen2.model.RematConfig",
    "tunix.models.qwen3.model.RematConfig",
    "tunix.rl.algorithm_config.AlgorithmConfig",
    "tunix.rl.function_registry.default_registry",
    "tunix.sft.utils.show_hbm_usage",
    "tunix.utils.compat.ModuleList",
    "tunix.utils.compat.set_mesh",
    "tunix.utils.env_utils.is_internal_env",
    "tunix.utils.env_utils.is_pathways_initialized",
    "tunix.utils.env_utils.setup_sharding_environment",
    "tunix.utils.math_rewards.math_reward",
    "tunix.utils.math_utils.extract_answer",
    "tunix.utils.script_utils.DEBUG_LEVELS",
]
# Of names that its examples, scripts and docs import; the tables hold more.
REFUSED = {
    "tunix.cli.utils.data.post_init_dataset": "data_path",
    "tunix.distillation.distillation_trainer.DistillationTrainer": "comes with distillation",
    "tunix.distillation.strategies.LogitStrategy": "comes with distillation",
    "tunix.examples.data.math_dataset.create_dataset": "examples/gsm8k",
    "tunix.examples.data.translation_dataset.create_datasets": "tunix.data.translation",
    "tunix.generate.mappings.MappingConfig": "rollout_engine",
    "tunix.models.gemma.params.load_and_format_params": "safetensors",
    "tunix.models.gemma3.params.GEMMA3_27B_IT": "google/gemma-3-27b-it",
    "tunix.models.gemma3.params.create_model_from_checkpoint": "safetensors",
    "tunix.models.gemma3.params.create_tokenizer": "load_tokenizer",
    "tunix.perf.experimental.export.PerfMetricsExport": "tracing",
    "tunix.perf.trace.PerfTracer": "tracing",
    "tunix.rl.agentic.agentic_grpo_learner.GRPOLearner": "comes with agents",
    "tunix.rl.agentic.agents.agent_types.Trajectory": "comes with agents",
    "tunix.rl.agentic.parser.chat_template_parser.parser.QwenChatTemplateParser": "agents",
    "tunix.rl.common.compute_kl_divergence": "tunix.rl.objectives.kl",
    "tunix.rl.grpo.grpo_learner.TrainExample": "PolicyBatch",
    "tunix.rl.rollout.vllm_rollout.VllmRollout": "BaseRollout",
    "tunix.tests.test_common.ToyTransformer": "dummy_model_creator",
    "tunix.utils.script_utils.get_dataset": "data_path",
    "tunix.DistillationTrainer": "comes with distillation",
    "tunix.AgenticGRPOLearner": "comes with agents",
}


@pytest.mark.parametrize("full_name", KEPT)
def test_a_kept_name_can_be_imported(full_name):
    module, _, name = full_name.rpartition(".")
    assert getattr(importlib.import_module(module), name) is not None


@pytest.mark.parametrize(("old", "new"), reference_names.MOVED.items())
def test_a_module_that_moved_is_the_same_under_both_names(old, new):
    moved = importlib.import_module(new)
    parent, _, name = old.rpartition(".")
    assert importlib.import_module(old) is moved
    assert getattr(importlib.import_module(parent), name) is moved
    assert moved.__name__ == moved.__spec__.name == new


@pytest.mark.parametrize("full_name", REFUSED)
def test_a_refused_name_says_what_to_do(full_name):
    module, _, name = full_name.rpartition(".")
    with pytest.raises(ImportError) as error:
        exec(f"from {module} import {name}", {})
    assert "of google-tunix is not here: " in str(error.value)
    assert REFUSED[full_name] in str(error.value)


@pytest.mark.parametrize("module", reference_names.MODULES)
def test_no_module_of_the_table_exists(module):
    parent, _, name = module.rpartition(".")
    for statement in (f"import {module}", f"import {module}.below", f"from {parent} import {name}"):
        with pytest.raises(ModuleNotFoundError, match="of google-tunix is not here: "):
            exec(statement, {})


@pytest.mark.parametrize(
    ("module", "name"),
    [(module, name) for module, names in reference_names.NAMES.items() for name in names],
)
def test_no_name_of_the_table_exists_and_every_one_is_answered(module, name):
    found = importlib.import_module(module)
    assert not hasattr(found, name)
    # Packages but `tunix` have no code: there the finder answers the import alone.
    if module == "tunix" or not hasattr(found, "__path__"):
        with pytest.raises(AttributeError, match="of google-tunix is not here: "):
            getattr(found, name)
    with pytest.raises(ImportError, match="of google-tunix is not here: "):
        exec(f"from {module} import {name}", {})


def hint_words():
    hints = [*reference_names.MODULES.values()]
    hints += [hint for names in reference_names.NAMES.values() for hint in names.values()]
    return sorted({word.rstrip(".,:;()") for hint in hints for word in hint.split()})


def test_what_a_hint_says_to_write_exists():
    modules = [word.partition("(")[0] for word in hint_words() if word.startswith("tunix.")]
    assert len(modules) > 20
    for full_name in modules:
        found, parts = tunix, full_name.split(".")[1:]
        for i, part in enumerate(parts, 1):
            if not hasattr(found, part):
                importlib.import_module(".".join(["tunix", *parts[:i]]))
            found = getattr(found, part)


def test_the_files_that_hints_point_to_exist():
    files = [w for w in hint_words() if w.startswith(("docs/", "examples/"))]
    assert files
    assert all((source.ROOT / file).exists() for file in files)


def test_an_unknown_name_is_what_python_says_it_is():
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'tunix\.rl\.grppo'"):
        importlib.import_module("tunix.rl.grppo")
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        exec("from tunix.rl.common import nothing", {})


def test_the_reference_page_lists_every_module_that_is_refused():
    page = (source.ROOT / "docs/reference/compatibility.md").read_text()
    missing = [m for m in reference_names.MODULES if m not in page and "mapping_" not in m]
    assert not missing


def test_the_reference_page_lists_every_module_that_is_kept():
    page = (source.ROOT / "docs/reference/compatibility.md").read_text()
    ours = ("compat", "env_utils", "script_utils")
    wanted = {f"tunix.utils.{name}" for name in ours} | {"tunix.cli.utils.model"}
    assert [name for name in sorted(wanted | {"tunix.generate.utils"}) if name not in page] == []


# What the kept names do.


class Annotated(nnx.Module):
    def __init__(self, rngs):
        place = nnx.with_partitioning(nnx.initializers.lecun_normal(), ("fsdp", "tp"))
        self.inner = nnx.Linear(4, 4, kernel_init=place, use_bias=False, rngs=rngs)

    def __call__(self, tokens):
        return self.inner(jax.nn.one_hot(tokens, 4))


@pytest.fixture
def restored_flag():
    before = flax.config.flax_always_shard_variable
    yield
    flax.config.update("flax_always_shard_variable", before)


def test_annotated_modules_can_be_made_and_trained_outside_of_a_mesh(restored_flag):
    flax.config.update("flax_always_shard_variable", True)
    with pytest.raises(ValueError, match="mesh"):
        Annotated(nnx.Rngs(0))
    env_utils.setup_sharding_environment()
    model = Annotated(nnx.Rngs(0))

    def loss(model, tokens):
        return jnp.mean(model(tokens) ** 2)

    trainer = peft_trainer.PeftTrainer(
        model, optax.sgd(0.1), peft_trainer.TrainingConfig(eval_every_n_steps=9)
    ).with_loss_fn(loss)
    trainer.train([{"tokens": np.arange(4)[None]}] * 3)
    losses = trainer.metrics_logger.get_metric_history("", "loss", "train")
    assert losses[2] < losses[1] < losses[0]


def test_importing_the_library_leaves_the_flag_of_flax_alone():
    code = (
        "import flax; before = flax.config.flax_always_shard_variable\n"
        "import tunix.utils.env_utils, tunix.sft.peft_trainer, tunix.rl.rl_cluster\n"
        "print(before == flax.config.flax_always_shard_variable)"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout == "True\n"


def test_the_models_of_the_library_are_the_same_with_the_flag_off(restored_flag):
    tokens = np.arange(6)[None]
    with_flag = helpers.tiny_decoder()(tokens)[0]
    env_utils.setup_sharding_environment()
    np.testing.assert_array_equal(helpers.tiny_decoder()(tokens)[0], with_flag)


@pytest.mark.parametrize(
    "base",
    [
        algorithm_config.AlgorithmConfig,
        grpo_learner.GRPOConfig,
        ppo_learner.PPOConfig,
        peft_trainer.TrainingConfig,
    ],
)
def test_extending_settings_unfrozen_says_what_to_write(base):
    class Mine(base):
        extra: int = 1

    with pytest.raises(TypeError, match=r"Mine extends settings.*frozen=True, kw_only=True"):
        dataclasses.dataclass(slots=True, kw_only=True)(Mine)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class WithSlots(grpo_learner.GRPOConfig):
    extra: float = 1.0


def test_settings_extended_frozen_are_checked_as_a_whole_with_slots_too():
    assert WithSlots(extra=2, beta=0.0).extra == 2
    assert pickle.loads(pickle.dumps(WithSlots(extra=3.0))) == WithSlots(extra=3.0)
    with pytest.raises(config.ConfigError, match="extra must be") as error:
        WithSlots(extra="x", num_iterations=0)
    assert "num_iterations" in str(error.value)


def test_the_values_of_remat_have_their_old_names():
    settings = qwen2.ModelConfig.qwen2p5_0p5b(remat=qwen2.RematConfig.BLOCK)
    assert settings.remat == "nothing_saveable"
    assert qwen2.ModelConfig.qwen2p5_0p5b(remat=qwen2.RematConfig.NONE).remat == "none"


def test_there_is_no_internal_store_of_models():
    assert automodel.ModelSource("internal") is automodel.ModelSource.INTERNAL
    with pytest.raises(sources.SourceError, match=r"ModelSource\.LOCAL"):
        tunix.AutoModel.from_pretrained("x/y", model_source=automodel.ModelSource.INTERNAL)


def test_levels_are_those_of_absl():
    from absl import logging

    assert {
        name: getattr(logging, name) for name in ("DEBUG", "INFO", "WARNING", "ERROR", "FATAL")
    } == script_utils.DEBUG_LEVELS


def test_a_mesh_is_set_and_a_list_of_modules_is_a_module():
    mesh = jax.make_mesh((1,), ("data",))
    with compat.set_mesh(mesh):
        assert jax.sharding.get_abstract_mesh().axis_names == ("data",)
    layers = compat.ModuleList([nnx.Linear(2, 2, rngs=nnx.Rngs(0))])
    assert len(jax.tree.leaves(nnx.state(layers))) == 2


@pytest.mark.parametrize(("x", "power"), [(0, 1), (1, 1), (2, 2), (3, 4), (64, 64), (65, 128)])
def test_the_next_power_of_two(x, power):
    assert generate_utils.next_power_of_2(x) == power


def test_padding_left_right_and_not_at_all():
    x = np.asarray([[1, 2]])
    pad = generate_utils.pad_to_length
    np.testing.assert_array_equal(pad(x, 4, 9, axis=1), [[1, 2, 9, 9]])
    np.testing.assert_array_equal(pad(x, 3, left=True, axis=-1), [[0, 1, 2]])
    np.testing.assert_array_equal(pad(x, 2, 7), [[1, 2], [7, 7]])
    np.testing.assert_array_equal(pad(x, 1, axis=1), x)


def test_where_a_row_begins_and_ends():
    row = np.asarray([0, 0, 5, 0, 7, 2, 0])
    assert generate_utils.find_first_non_pad_idx(row, 0) == 2
    assert generate_utils.find_last_non_pad_idx(row, 0) == 5
    assert generate_utils.find_first_eos_idx(row, 2) == 5
    assert generate_utils.find_first_eos_idx(row, jnp.asarray([2, 7])) == 4
    assert generate_utils.find_first_eos_idx(row, 9) == 7


def test_positions_and_the_mask_of_a_cache():
    mask = np.asarray([[0, 1, 1]])
    np.testing.assert_array_equal(generate_utils.build_positions_from_mask(mask), [[0, 0, 1]])
    np.testing.assert_array_equal(
        generate_utils.make_causal_attn_mask(mask, 4),
        [[[0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0]]],
    )


def test_models_from_dictionaries(tmp_path):
    tiny_llama.write_model(tmp_path)
    model, path = cli_models.create_model({"model_id": str(tmp_path)}, {}, None)
    assert path == str(tmp_path)
    assert cli_models.create_tokenizer({}, path).eos_id() == 1
    lora = {"module_path": ".*q_proj", "rank": 2, "alpha": 4.0}
    adapted = cli_models.apply_lora_to_model(model, None, lora)
    assert len(jax.tree.leaves(nnx.state(adapted, nnx.LoRAParam))) == 2
    with pytest.raises(config.ConfigError, match="known key of google-tunix"):
        cli_models.create_model({"model_id": path, "model_display": True}, {}, None)
