"""The text film: what it asks, its backbone against the stock model, answers by likelihood, the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from videox2l import VideoX2L
from videox2l.cli.app import app
from videox2l.errors import ModelError, SettingsError
from videox2l.evaluate import film_model
from videox2l.evaluate.base import BenchmarkOptions
from videox2l.evaluate.encode import EncodedVideo
from videox2l.evaluate.film import FACTS, Film
from videox2l.evaluate.film_model import LEAD, TextFilmBackbone, load_film_model, page_image, page_text
from videox2l.evaluate.registry import method_by_name
from videox2l.evaluate.static_cache import generate_answer, likeliest

TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


def tiny(template: str | None = TEMPLATE) -> tuple[Any, Any]:
    """A random decoder whose tokens are bytes."""
    vocabulary = {f"<{i}>": i for i in range(2)}
    for symbol in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[symbol] = len(vocabulary)
    plain = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    from tokenizers import decoders

    plain.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<0>", bos_token="<1>")
    tokenizer.chat_template = template
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=8192, bos_token_id=1, eos_token_id=0,
        initializer_range=0.2,
    )  # fmt: skip
    return LlamaForCausalLM(config).float().eval(), tokenizer


@pytest.fixture(scope="module")
def backbone() -> TextFilmBackbone:
    return TextFilmBackbone(*tiny())


def encoded(backbone: TextFilmBackbone, film: Film) -> EncodedVideo:
    with film.open(film.samples()[0].video) as source:
        return EncodedVideo(VideoX2L(backbone), source)


def words_of(film: Film) -> str:
    with film.open(film.samples()[0].video) as source:
        return "".join(page_text(frame.image) for frame in source)


@pytest.mark.parametrize("template", [TEMPLATE, None])
def test_it_is_the_stock_model(template: str | None) -> None:
    """Logits behind the film, page by page, against one pass of the stock model over the words; positions matter."""
    model, tokenizer = tiny(template)
    film = Film(BenchmarkOptions(questions=1, pages=3))
    question, begun = film.samples()[0].question, "The red cup has number"
    if template is None:
        text = f"<1>{words_of(film)}{question}\n{begun}"
    else:
        message = [{"role": "user", "content": words_of(film) + question}]
        text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True) + begun
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        truth = model(ids).logits[0, -1]
    backbone = TextFilmBackbone(model, tokenizer)
    video = encoded(backbone, film)
    prompt = backbone.suffix(question + LEAD + begun)
    for shift, exact in ((0, True), (1, False)):
        cache = backbone.new_cache()
        video.prefill(cache, video.chunks)
        assert len(cache) + len(prompt) == ids.shape[1]
        positions = backbone.text_positions(video.next_position + shift, len(prompt))
        logits = backbone.logits(backbone.forward(prompt.embeds, positions, cache)[-1:])[0]
        assert bool((logits - truth).abs().max() < 1e-4) is exact


def test_everything_reloaded_is_full_kv(backbone: TextFilmBackbone) -> None:
    film = Film(BenchmarkOptions(questions=1, pages=4))
    video = encoded(backbone, film)
    sample = film.samples()[0]
    truth = method_by_name("full").prepare(video, 1.0, 4).ask(sample)
    assert truth.text in sample.candidates
    for name in ("x2l", "x2l:oracle", "H", "keydiff", "retrieval"):
        assert method_by_name(name).prepare(video, 1.0, 4).ask(sample).text == truth.text, name


def test_the_likeliest_is_the_likeliest(backbone: TextFilmBackbone) -> None:
    """Against the sum of log-probabilities of every candidate, each read as a whole; the cache stays as it was."""
    film = Film(BenchmarkOptions(questions=1, pages=3))
    video = encoded(backbone, film)
    prompt = backbone.suffix("Which number?")
    cache = video.full.cache
    held = len(cache)
    candidates = tuple(str(n) for n in range(10, 100, 3))
    winners = set()
    for scale in (1.0, -1.0):
        base = backbone.forward(prompt.embeds, backbone.text_positions(video.next_position, len(prompt)), cache)
        logits = scale * backbone.logits(base[-1:])[0]
        place = video.next_position + len(prompt)
        scores = []
        for text in candidates:
            ids = torch.tensor(backbone.ids_of(f" {text}"))
            before = len(cache)
            hidden = backbone.forward(backbone.embed(ids), backbone.text_positions(place, len(ids)), cache)
            for layer in cache.layers:
                layer.crop(before)
            after = torch.cat([logits[None], backbone.logits(hidden)[:-1]]).log_softmax(-1)
            scores.append(float(after[torch.arange(len(ids)), ids].sum()))
        found = likeliest(backbone, cache, logits, place, candidates)
        assert backbone.decode(found).strip() == candidates[int(np.argmax(scores))]
        winners.add(tuple(found))
        for layer in cache.layers:
            layer.crop(held)
    assert len(cache) == held
    assert generate_answer(backbone, cache, video.next_position, prompt, 4, candidates).text in candidates


def test_what_is_asked() -> None:
    film = Film(BenchmarkOptions(split="heldout", seed=3, questions=200, pages=12))
    samples = film.samples()
    assert len(samples) == len({sample.id for sample in samples}) == 200
    assert {sample.kind for sample in samples} == {"place", "described", "synonym", "thing", "two", "none"}
    for sample in samples:
        assert sample.truth in sample.candidates
        assert len(sample.moments) == (2 if sample.kind == "two" else 1)
        pages = film.script(int(sample.video.rpartition("-")[2]))
        assert all(len(facts) == FACTS for _, _, facts in pages)
        needed = [pages[int(page)] for page in sample.labels["pages"].split()]
        if sample.kind in ("place", "synonym", "described", "thing", "two"):
            assert any(int(sample.truth) == number for _, _, facts in needed for *_, number in facts)
        if sample.kind in ("place", "synonym", "none"):
            assert f"in the {needed[0][0]}" in sample.question
        if sample.kind == "described":
            assert needed[0][1] in sample.question
            assert f"in the {needed[0][0]}" not in sample.question
    assert [s.question for s in samples] != [
        s.question for s in Film(BenchmarkOptions(split="dev", seed=3, questions=200, pages=12)).samples()
    ]


@pytest.mark.parametrize("pages", [2, 24, 64])
def test_places_are_told_apart(pages: int) -> None:
    script = Film(BenchmarkOptions(pages=pages)).script(0)
    assert len({place for place, _, _ in script}) == len({told for _, told, _ in script}) == pages


def test_pages_are_read_as_they_were_written() -> None:
    text = "Scene in the café: 🙂 number 42.\n"
    assert page_text(page_image(text, len(text) + 7)) == text
    with pytest.raises(SettingsError, match="does not fit"):
        page_image(text, 3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (BenchmarkOptions(pages=1), "pages must be 2 to 64, got 1"),
        (BenchmarkOptions(pages=65), "pages must be 2 to 64, got 65"),
        (BenchmarkOptions(questions=0), "questions must be 1 or more, got 0"),
        (BenchmarkOptions(split="test"), "film has dev, heldout"),
        (BenchmarkOptions(tasks=("digit",)), "film has place"),
    ],
)
def test_what_does_not_fit_is_refused(options: BenchmarkOptions, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        Film(options)


def test_the_command_with_a_model_of_ones_own(tmp_path: Path) -> None:
    model, tokenizer = tiny()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    command = ["eval", "film", "--split", "heldout", "--seed", "5", "--questions", "7", "--pages", "4", "--model"]
    command += [str(tmp_path / "model"), "--methods", "full,x2l,x2l:oracle,H", "--budget", "1/4", "--device", "cpu"]
    shown = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "run")])
    assert shown.exit_code == 0, shown.output
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["x2l:oracle"]["recall"] == summary["x2l:oracle"]["recall_1"] == 1.0
    assert 0 <= summary["x2l"]["recall_1"] <= summary["x2l"]["recall"] <= 1
    assert summary["full"]["n"] == 7
    assert not summary["x2l"]["off_budget"]
    assert len((tmp_path / "run" / "samples.jsonl").read_text().splitlines()) == 28


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(film_model, "PACKAGE", "no_such_package_of_weights")
    with pytest.raises(ModelError, match=r"videox2l\[film\]"):
        load_film_model("smollm2", "cpu")
    with pytest.raises(ModelError, match="is neither a folder here nor a hub id"):
        load_film_model("/no/such/folder", "cpu")
