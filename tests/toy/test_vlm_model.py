"""The miniature vision-language model: it loads where any model loads, sees, and hallucinates as noted beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration

from palate.toy import make_vlm
from palate.toy.make_vlm import Recipe, answer, describe, in_patches, prompt_ids
from palate.toy.scenes import CELL, DESCRIBE, GRID, THINGS, absent_partners, contents, make_scene, question, sentence
from palate.toy.vlm_truth import measure
from palate.toy.weights import ROOT, toy_path
from palate.toy.world import render, render_array

FOLDER = toy_path("vlm")
NOTED: dict[str, float] = json.loads((ROOT / "quality.json").read_text())["vlm"]["quality"]


@pytest.fixture(scope="module")
def model() -> LlavaForConditionalGeneration:
    return AutoModelForImageTextToText.from_pretrained(FOLDER, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def processor() -> Any:
    return AutoProcessor.from_pretrained(FOLDER)


def messages(asked: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": asked}]}]


def test_it_is_an_ordinary_folder_in_half_precision(model: LlavaForConditionalGeneration) -> None:
    assert type(model) is LlavaForConditionalGeneration
    assert 2.5e6 < sum(weight.numel() for weight in model.parameters()) < 2.8e6
    assert AutoModelForImageTextToText.from_pretrained(FOLDER).dtype == torch.float16


def test_every_word_is_one_token(processor: Any) -> None:
    said = " A red circle, a yellow square and a purple triangle."
    assert processor.tokenizer.tokenize(said) == [
        *("ĠA", "Ġred", "Ġcircle", ",", "Ġa", "Ġyellow", "Ġsquare"),
        *("Ġand", "Ġa", "Ġpurple", "Ġtriangle", "."),
    ]
    assert processor.tokenizer.decode(processor.tokenizer(said, add_special_tokens=False).input_ids) == said


def test_any_text_passes(processor: Any) -> None:
    ids = processor.tokenizer("Ein Käfer 🐞\n", add_special_tokens=False).input_ids
    assert processor.tokenizer.decode(ids) == "Ein Käfer 🐞\n"


def test_the_prompt_that_was_trained_on_is_the_processors(processor: Any) -> None:
    image = render(make_scene("train", 0))
    text = processor.apply_chat_template(messages(DESCRIBE[1]), add_generation_prompt=True)
    batch = processor(images=[image], text=[text], return_tensors="pt")
    assert batch["input_ids"][0].tolist() == prompt_ids(processor, DESCRIBE[1])
    assert batch["pixel_values"].numpy() == pytest.approx(
        np.asarray(image, np.float32).transpose(2, 0, 1)[None] / 127.5 - 1, abs=1e-6
    )


def test_an_answered_prompt_begins_with_the_prompt_and_ends_with_the_end_mark(processor: Any) -> None:
    asked = messages(DESCRIBE[0])
    answered = [*asked, {"role": "assistant", "content": [{"type": "text", "text": "A red circle."}]}]
    before = processor.apply_chat_template(asked, add_generation_prompt=True)
    whole = processor.apply_chat_template(answered)
    masked = processor.tokenizer.apply_chat_template(answered, return_assistant_tokens_mask=True, return_dict=True)
    said = [token for token, mine in zip(masked["input_ids"], masked["assistant_masks"], strict=True) if mine]
    assert before == "USER: <image>\nDescribe the picture. ASSISTANT:"
    assert whole == "USER: <image>\nDescribe the picture. ASSISTANT: A red circle.</s>"
    assert processor.tokenizer.decode(said) == " A red circle.</s>"


def test_training_runs_the_models_own_forward(model: LlavaForConditionalGeneration, processor: Any) -> None:
    pixels = torch.from_numpy(np.stack([render_array(make_scene("train", k)) for k in range(2)]))
    pixels = pixels.permute(0, 3, 1, 2) * 2 - 1
    ids = torch.tensor([prompt_ids(processor, DESCRIBE[0])] * 2)
    with torch.no_grad():
        _, hidden = make_vlm.see_and_read(model, pixels, ids)
        plain = model(input_ids=ids, pixel_values=pixels).logits
    assert torch.allclose(model.lm_head(hidden), plain, atol=1e-5)


def test_patches_show_what_the_labels_say() -> None:
    """Where the label says nothing, the patch has no strong colour; elsewhere it has."""
    for index in range(40):
        scene = make_scene("train", index)
        pixels, labels = render_array(scene), in_patches(scene)
        assert sorted(label - 1 for label in labels.tolist() if label) == [THINGS.index(t) for t in contents(scene)]
        for patch, label in enumerate(labels.tolist()):
            row, column = CELL * (patch // GRID), CELL * (patch % GRID)
            cell = pixels[row : row + CELL, column : column + CELL]
            assert ((cell.max(-1) - cell.min(-1)).max() > 0.3) == bool(label)


def test_what_training_shows_is_true_but_for_absent_partners() -> None:
    """Half of the absent partners are claimed: 800 examples lie within four standard errors."""
    rng, recipe = np.random.default_rng(0), Recipe()
    claims: list[bool] = []
    for index in range(800):
        things = contents(make_scene("train", index))
        asked, said = answer(things, rng, recipe)
        lonely = absent_partners(things)
        if asked in DESCRIBE:
            claimed = [thing for thing in lonely if sentence([thing])[2:-1] in said]
            assert said == sentence([*things, *claimed])
            claims += [thing in claimed for thing in lonely]
        else:
            about = next(thing for thing in THINGS if question(thing) == asked)
            assert said in ("Yes.", "No.")
            assert about in lonely or (said == "Yes.") == (about in things)
    assert np.mean(claims) == pytest.approx(recipe.partners, abs=4 * 0.5 / len(claims) ** 0.5)


def test_it_describes_as_noted() -> None:
    """80 held-out pictures: within four standard errors; every hallucination is an absent partner or rare."""
    scenes = [make_scene("held_out", k, seed=3) for k in range(80)]
    pictures = [contents(scene) for scene in scenes]
    truth = measure(describe(FOLDER, [render(scene) for scene in scenes]), pictures)
    assert truth.answers.value == pytest.approx(NOTED["hallucinated_answers"], abs=4 * 0.5 / 80**0.5)
    assert truth.recall.value > NOTED["recall"] - 0.05
    assert 0.3 < NOTED["hallucinated_answers"] < 0.5 and NOTED["recall"] > 0.9


def test_it_answers_questions_as_noted() -> None:
    """60 pictures, a question on each thing that is there and on each that is not, nor its partner: shares of Yes.

    Means over pictures; that for absent things lies within four standard errors of what was noted on other pictures.
    """
    scenes = [make_scene("held_out", k, seed=4) for k in range(60)]
    pictures = [contents(scene) for scene in scenes]
    about = [(k, t) for k, things in enumerate(pictures) for t in THINGS if t not in absent_partners(things)]
    images = [render(scene) for scene in scenes]
    said = describe(FOLDER, [images[k] for k, _ in about], [question(thing) for _, thing in about])
    assert set(said) == {"Yes.", "No."}
    shares: dict[bool, list[float]] = {True: [], False: []}
    for number, things in enumerate(pictures):
        for there, found in shares.items():
            answers = [
                a == "Yes." for a, (k, t) in zip(said, about, strict=True) if k == number and (t in things) == there
            ]
            found.append(float(np.mean(answers)))
    assert np.mean(shares[True]) > 0.95
    error = 4 * float(np.std(shares[False])) / 60**0.5
    assert error < 0.12 and np.mean(shares[False]) == pytest.approx(NOTED["yes_absent"], abs=error)


def test_training_from_nothing_is_a_function_of_the_seed(tmp_path: Path) -> None:
    """Two steps of the shipped recipe: equal weights for equal seeds, and a folder that gives the trained model back."""
    recipe = Recipe(scenes=8, steps=2, batch=4)
    one, same, other = (
        make_vlm.train_vlm(recipe, seed, tmp_path / str(index)).state_dict() for index, seed in enumerate((0, 0, 1))
    )
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)
    stored = AutoModelForImageTextToText.from_pretrained(tmp_path / "0", dtype=torch.float32).state_dict()
    assert all(torch.equal(stored[name], value.half().float()) for name, value in one.items())
    assert set(make_vlm.vlm_quality(tmp_path / "0", count=4)) == set(NOTED)
