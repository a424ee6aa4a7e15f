"""Every spelling of a model leads to the same preset."""

import pytest

from tunix.models import automodel, families, naming


@pytest.mark.parametrize(
    ("model_id", "name", "config_id", "category"),
    [
        ("meta-llama/Llama-3.1-8B", "llama3.1-8b", "llama3p1_8b", "llama3"),
        (
            "meta-llama/Llama-3.1-8B-Instruct",
            "llama3.1-8b-instruct",
            "llama3p1_8b_instruct",
            "llama3",
        ),
        ("meta-llama/Meta-Llama-3-70B", "llama3-70b", "llama3_70b", "llama3"),
        (
            "meta-llama/Llama-3.3-70B-Instruct",
            "llama3.3-70b-instruct",
            "llama3p3_70b_instruct",
            "llama3",
        ),
        ("HuggingFaceTB/SmolLM2-1.7B", "smollm2-1.7b", "smollm2_1p7b", "llama3"),
        ("google/gemma-2b-it", "gemma-2b-it", "gemma_2b_it", "gemma"),
        ("google/gemma-1.1-7b-it", "gemma1.1-7b-it", "gemma1p1_7b_it", "gemma"),
        ("google/gemma-2-9b", "gemma2-9b", "gemma2_9b", "gemma"),
        ("google/gemma-3-270m", "gemma3-270m", "gemma3_270m", "gemma3"),
        ("google/gemma-3-1b-pt", "gemma3-1b-pt", "gemma3_1b_pt", "gemma3"),
        ("Qwen/Qwen2.5-0.5B", "qwen2.5-0.5b", "qwen2p5_0p5b", "qwen2"),
        ("Qwen/Qwen2.5-Math-1.5B", "qwen2.5-math-1.5b", "qwen2p5_math_1p5b", "qwen2"),
        (
            "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
            "deepseek-r1-distill-qwen-1.5b",
            "deepseek_r1_distill_qwen_1p5b",
            "qwen2",
        ),
        ("Qwen/Qwen3-30B-A3B", "qwen3-30b-a3b", "qwen3_30b_a3b", "qwen3"),
        (
            "Qwen/Qwen3-4B-Instruct-2507",
            "qwen3-4b-instruct-2507",
            "qwen3_4b_instruct_2507",
            "qwen3",
        ),
    ],
)
def test_hub_id_model_name_and_config_id_name_one_model(model_id, name, config_id, category):
    assert naming.get_model_name_from_model_id(model_id) == name
    assert naming.get_model_name_from_model_id(config_id) == name
    for spelling in (name, config_id, model_id.rsplit("/", 1)[-1]):
        assert naming.get_model_config_id(spelling) == config_id
        assert naming.get_model_config_category(spelling) == category


def test_a_name_splits_into_family_and_version():
    assert naming.split("llama3.1-8b") == ("llama3.1", "8b")
    assert naming.get_model_family_and_version("qwen2.5-0.5b-instruct") == (
        "qwen2p5",
        "0p5b_instruct",
    )


def test_naming_derives_everything_from_an_id():
    found = naming.ModelNaming(model_id="meta-llama/Llama-3.2-1B-Instruct")
    assert found.model_name == "llama3.2-1b-instruct"
    assert (found.model_family, found.model_version) == ("llama3p2", "1b_instruct")
    assert found.model_config_category == "llama3"
    assert found.model_config_id == "llama3p2_1b_instruct"


def test_a_name_decides_over_an_id_that_says_nothing():
    found = naming.ModelNaming(model_id="me/my-finetune", model_name="llama3.1-8b")
    assert found.model_config_id == "llama3p1_8b"


def test_an_id_and_a_name_of_two_families_are_an_error():
    with pytest.raises(naming.NamingError, match=r"family 'qwen3' but .* family 'llama3.1'"):
        naming.ModelNaming(model_id="Qwen/Qwen3-8B", model_name="llama3.1-8b")


def test_neither_id_nor_name_is_an_error():
    with pytest.raises(naming.NamingError, match="needs a model_id or a model_name"):
        naming.ModelNaming()


def test_an_unknown_family_is_told_with_the_nearest_known_one():
    with pytest.raises(naming.NamingError, match=r"did you mean 'llama3\.1'"):
        naming.split("lama3.1-8b")


@pytest.mark.parametrize("name", ["llama3.1", "llama3.1-instruct", "gemma"])
def test_a_name_without_a_size_is_an_error(name):
    with pytest.raises(naming.NamingError, match="has no size"):
        naming.split(name)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_the_name_of_every_preset_leads_to_it(family):
    config_class = families.FAMILIES[family].config_class
    presets = [name for name, member in vars(config_class).items() if type(member) is classmethod]
    assert presets
    for preset in presets:
        assert naming.get_model_config_id(preset) == preset
        assert naming.get_model_config_category(preset) == family
        assert automodel.call_model_config(preset) == getattr(config_class, preset)()
