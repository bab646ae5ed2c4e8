"""Stable Diffusion through diffusers, by a tiny random pipeline that is saved on the spot and loaded as any other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from workbench import Outcome

from training.synthesis.attention import cross_attentions, layer_side, preference_maps
from training.synthesis.layouts import Scene
from training.synthesis.model import TextToImage
from training.synthesis.registry import open_text_to_image
from training.synthesis.synthesize import edited_noise
from udr.errors import ConfigError

WORDS = ["<|startoftext|>", "<|endoftext|>", *"abcdefghijklmnopqrstuvwxyz", *(f"{c}</w>" for c in "abcdgnrst")]
WORDS += ["do", "dog</w>", "ca", "cat</w>", "an", "and</w>"]
MERGES = ["d o", "do g</w>", "c a", "ca t</w>", "a n", "an d</w>"]


@pytest.fixture(scope="module")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline in Stable Diffusion's form with random weights: latents of 16 × 16, 4 channels, its words two merges
    each, and PNDM as its own scheduler, as v1.4 has."""
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("sd")
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(WORDS)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)
    torch.manual_seed(0)
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(WORDS),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=16,
            bos_token_id=0,
            eos_token_id=1,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=2,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4, sample_size=16)
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=PNDMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder / "pipeline")
    return folder / "pipeline"


@pytest.fixture(scope="module")
def model(pipeline_folder: Path) -> TextToImage:
    return open_text_to_image(f"sd:{pipeline_folder}", "cpu")


def test_a_pipeline_is_opened_with_ddim_and_the_authors_layer(model: TextToImage) -> None:
    assert type(model.scheduler).__name__ == "DDIMScheduler"
    assert model.shape == (4, 16, 16)
    assert model.layer == "down_blocks.1.attentions.1.transformer_blocks.0.attn2"
    assert model.layer in cross_attentions(model.unet)
    assert layer_side(model) == 8
    assert model.guidance == 7.5
    assert len(model.times()) == model.steps == 50


def test_places_of_words_count_the_begin_as_published(model: TextToImage) -> None:
    prompt = "a dog and a cat"
    assert [model.places(prompt, word) for word in ("dog", "cat")] == [[2], [5]]
    assert model.places(prompt, "a cat") == [4, 5]


def test_pictures_are_those_of_diffusers_own_pipeline(pipeline_folder: Path, model: TextToImage) -> None:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    pipeline: Any = StableDiffusionPipeline.from_pretrained(str(pipeline_folder), safety_checker=None)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    noise = model.noise(3)[None]
    expected = pipeline("a dog", latents=noise, num_inference_steps=4, guidance_scale=7.5, output_type="np").images[0]
    found = model.decode(model.paint(noise, ["a dog"], steps=4))[0]
    np.testing.assert_allclose(found.transpose(1, 2, 0) / 255, expected, atol=1.5 / 255)


def test_blocks_of_two_by_two_latents_are_moved_to_the_boxes(model: TextToImage) -> None:
    scene = Scene(prompt="a dog and a cat", boxes={"dog": (0, 0, 0.5, 0.5), "cat": (0.5, 0.5, 1, 1)})
    noise = model.noise(0)[None]
    (maps,) = preference_maps(model, noise, [scene.prompt], [["dog", "cat"]], steps=4)
    assert maps["dog"].shape == (8, 8)
    moved = edited_noise(model, noise, [scene], "sorted", [0], 4)[0]
    blocks, after = (x.reshape(4, 8, 2, 8, 2).permute(1, 3, 0, 2, 4).reshape(64, -1) for x in (noise[0], moved))
    source = [int((blocks == one).all(1).nonzero()[0, 0]) for one in after]
    assert sorted(source) == list(range(64))
    assert source != list(range(64))
    scores = {word: maps[word].ravel() / maps[word].mean() for word in maps}
    dogs = [c for c in range(64) if scores["dog"][c] >= scores["cat"][c]]
    first = max(dogs, key=lambda c: scores["dog"][c])
    assert source[0] == first  # the box begins with the best block


def test_the_command_takes_stable_diffusion(pipeline_folder: Path, tmp_path: Path, udr: Callable[..., Outcome]) -> None:
    layout = tmp_path / "layout.yaml"
    layout.write_text("scenes: [{prompt: a dog and a cat, boxes: {dog: [0, 0, 0.5, 1]}, count: 2}]")
    words = ("--layout", layout, "--out", tmp_path / "made.parquet", "--steps", 4, "--least", 0)
    done = udr("synthesize", "--model", f"sd:{pipeline_folder}", *words)
    assert done.code == 0, done.err
    assert "2 of 2 pictures" in done.out
    layout.write_text("scenes: [{prompt: a dog and a cat, boxes: {bird: [0, 0, 0.5, 1]}, count: 2}]")
    done = udr("synthesize", "--model", f"sd:{pipeline_folder}", *words)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "does not hold 'bird'" in done.err


def test_what_is_no_pipeline_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sd:.*cannot be loaded") as told:
        open_text_to_image(f"sd:{tmp_path}")
    assert "\n" not in str(told.value)
