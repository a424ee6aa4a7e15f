"""Pixels and prompts are those that transformers makes of the same images."""

import numpy as np
import PIL.Image
import pytest
import tokenizers
import torch
import transformers
from tokenizers import models as tokenizer_models
from tokenizers import pre_tokenizers
from transformers.models.gemma3 import image_processing_pil_gemma3, processing_gemma3

from tunix.models.gemma3 import vision_config
from tunix.processors import image_processor

SIDE = 56


@pytest.fixture
def processor():
    return image_processor.ImageProcessor(
        vision_config.SigLIPConfig(
            image_height=SIDE, image_width=SIDE, num_mm_tokens_per_image=4, width=32
        )
    )


def reference():
    """Return transformers' processor with the settings of the published models."""
    half = [0.5, 0.5, 0.5]
    return image_processing_pil_gemma3.Gemma3ImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, image_mean=half, image_std=half
    )


def random_image(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def pictures():
    """Smooth and rough, larger and smaller than the model's, wide and tall."""
    ramp = np.linspace(0, 255, 90 * 200 * 3).reshape(90, 200, 3).astype(np.uint8)
    return {
        "noise, larger": random_image(150, 97, 3),
        "noise, smaller": random_image(20, 31, 3),
        "noise, of the size": random_image(SIDE, SIDE, 3),
        "a ramp": ramp,
    }


@pytest.mark.parametrize("name", pictures())
def test_pixels_are_those_of_transformers(name, processor):
    image = pictures()[name]
    theirs = reference()(image, return_tensors="np")["pixel_values"][0]
    ours = processor.preprocess_image(image)
    assert ours.shape == (SIDE, SIDE, 3) and ours.dtype == np.float32
    # Equal in every level of 0 to 255; what is left is float32 of a division done in two steps.
    np.testing.assert_allclose(ours, theirs.transpose(1, 2, 0), atol=1e-7)


@pytest.mark.parametrize("name", pictures())
def test_pixels_are_those_of_an_independent_filter_to_one_level(name, processor):
    """The torch backend of transformers filters like this; it rounds once, Pillow twice."""
    image = torch.tensor(pictures()[name].transpose(2, 0, 1)[None]).float()
    theirs = torch.nn.functional.interpolate(
        image, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False
    )
    theirs = theirs[0].numpy().transpose(1, 2, 0)
    ours = processor.preprocess_image(pictures()[name]) * 127.5 + 127.5
    np.testing.assert_allclose(ours, theirs, atol=1.01)


def test_black_and_white_are_minus_one_and_one(processor):
    for value, expected in ((0, -1.0), (255, 1.0)):
        pixels = processor.preprocess_image(np.full((3, 5, 3), value, np.uint8))
        np.testing.assert_array_equal(pixels, np.full((SIDE, SIDE, 3), expected, np.float32))
    np.testing.assert_array_equal(
        processor.preprocess_image(None), np.full((SIDE, SIDE, 3), -1.0, np.float32)
    )


def test_mean_and_std_of_the_config_count():
    config = vision_config.SigLIPConfig(image_mean=(0.0, 51.0, 127.5), image_std=(255.0, 51.0, 1.0))
    pixels = image_processor.ImageProcessor(config).preprocess_image(
        np.full((9, 9, 3), 102, np.uint8)
    )
    np.testing.assert_allclose(pixels[0, 0], [0.4, 1.0, -25.5], rtol=1e-6)


def test_grey_transparent_and_pillow_images_and_files_are_the_same_colours(processor, tmp_path):
    grey = random_image(30, 40)
    colours = np.repeat(grey[:, :, None], 3, axis=2)
    expected = processor.preprocess_image(colours)
    PIL.Image.fromarray(colours).save(tmp_path / "image.png")
    opaque = np.concatenate([colours, np.full((30, 40, 1), 255, np.uint8)], axis=2)
    for image in (
        grey,
        grey[:, :, None],
        opaque,
        PIL.Image.fromarray(grey),
        PIL.Image.fromarray(colours).convert("RGBA"),
        str(tmp_path / "image.png"),
        tmp_path / "image.png",
    ):
        np.testing.assert_array_equal(processor.preprocess_image(image), expected)


def test_a_photo_held_on_its_side_is_turned_as_transformers_turns_it(processor, tmp_path):
    image = PIL.Image.fromarray(random_image(40, 24, 3))
    exif = image.getexif()
    exif[0x0112] = 6  # turned clockwise
    image.save(tmp_path / "photo.png", exif=exif)
    theirs = transformers.image_utils.load_image(str(tmp_path / "photo.png"))
    assert theirs.size == (40, 24)
    np.testing.assert_array_equal(
        processor.preprocess_image(tmp_path / "photo.png"),
        processor.preprocess_image(np.asarray(theirs)),
    )


def test_a_batch_has_room_for_the_most_images_and_zeros_elsewhere(processor):
    a, b, c = (random_image(20, 20, 3, seed=seed) for seed in range(3))
    batch = processor.batch([[a, b], None, c, []])
    assert batch.shape == (4, 2, SIDE, SIDE, 3) and batch.dtype == np.float32
    for row, slot, image in ((0, 0, a), (0, 1, b), (2, 0, c)):
        np.testing.assert_array_equal(batch[row, slot], processor.preprocess_image(image))
    assert not batch[1].any() and not batch[2, 1].any() and not batch[3].any()
    assert processor.batch([None]).shape == (1, 1, SIDE, SIDE, 3)


def test_images_come_back_prompt_by_prompt(processor):
    a, b = (random_image(20, 20, 3, seed=seed) for seed in range(2))
    assert [len(own) for own in processor([[a, b], None, b])] == [2, 0, 1]
    (only,) = processor(a)
    np.testing.assert_array_equal(only[0], processor.preprocess_image(a))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        pytest.param(np.zeros((4, 4, 3), np.float32), "float32; expected uint8", id="floats"),
        pytest.param(np.zeros((3, 4, 5), np.uint8), r"\(3, 4, 5\)", id="channels first"),
        pytest.param(np.zeros((0, 4, 3), np.uint8), r"\(0, 4, 3\)", id="empty"),
        pytest.param("no/such/image.png", "no/such/image.png: cannot be read", id="no file"),
        pytest.param(__file__, "image_processor_test.py: cannot be read", id="not an image"),
    ],
)
def test_what_is_not_an_image_is_refused(image, message, processor):
    with pytest.raises(image_processor.ImageError, match=message):
        processor.preprocess_image(image)


def letter_tokenizer():
    """Return a tokenizer of single letters that knows Gemma 3's image tokens."""
    letters = {letter: i for i, letter in enumerate("?\n abcdefghijklmnopqrstuvwxyz")}
    model = tokenizers.Tokenizer(tokenizer_models.WordLevel(letters, unk_token="?"))
    model.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=model,
        extra_special_tokens={
            "boi_token": image_processor.START_OF_IMAGE,
            "eoi_token": image_processor.END_OF_IMAGE,
            "image_token": image_processor.SOFT_TOKEN,
        },
    )


@pytest.mark.parametrize(
    ("prompt", "num_images"),
    [
        ("what is <start_of_image> and\n\n<start_of_image>\n", 2),
        ("<start_of_image>", 1),
        ("<start_of_image><start_of_image> compare", 2),
    ],
)
def test_prompts_get_the_tokens_that_transformers_gives_them(prompt, num_images, processor):
    tokenizer = letter_tokenizer()
    theirs = processing_gemma3.Gemma3Processor(reference(), tokenizer, image_seq_length=4)
    images = [random_image(20, 20, 3, seed=seed) for seed in range(num_images)]
    expected = theirs(text=[prompt], images=[images])
    (expanded,) = processor.expand_prompts([prompt], [images])
    assert tokenizer(expanded)["input_ids"] == list(expected["input_ids"][0])


def test_an_image_takes_as_many_tokens_as_the_config_says():
    published = image_processor.ImageProcessor(vision_config.SigLIPConfig())
    expanded = published.expand_prompt("a <start_of_image> b", 1)
    assert expanded.count(image_processor.SOFT_TOKEN) == 256
    assert expanded.startswith("a \n\n<start_of_image><image_soft_token>")
    assert expanded.endswith("<image_soft_token><end_of_image>\n\n b")


@pytest.mark.parametrize(
    ("prompt", "images", "message"),
    [
        pytest.param("a", [None], "0 <start_of_image> for 1 images", id="no place"),
        pytest.param("<start_of_image>", None, "1 <start_of_image> for 0 images", id="no image"),
        pytest.param("<image_soft_token>", None, "pass the prompt as written", id="done already"),
    ],
)
def test_prompts_and_images_that_do_not_fit_are_refused(prompt, images, message, processor):
    with pytest.raises(image_processor.ImageError, match=message):
        processor.expand_prompts([prompt], [images])
    with pytest.raises(image_processor.ImageError, match="2 prompts for 1 lists"):
        processor.expand_prompts([prompt, prompt], [images])
