"""Recipes are strict: a mistake is one error with the key and the nearest right value, before any work."""

from __future__ import annotations

import time

import pytest

from lorakit.config import recipe, strict_yaml
from lorakit.core.errors import ConfigError
from lorakit.training import memory_plan

BASE = {"base": "tiny-dit", "dataset": "a", "out": "b"}
NAN, INF = float("nan"), float("inf")


SLIDER = {"target_prompt": "a ring", "positive_prompt": "a big ring", "negative_prompt": "a small ring"}


def problem(**changes) -> str:
    with pytest.raises(ConfigError) as caught:
        recipe.parse_recipe(BASE | changes, "r.yaml")
    assert caught.value.exit_code == 2
    assert "r.yaml" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optimiser": {}}, "optimiser: unknown key; did you mean 'optimizer'?"),
        ({"Optimizer": {}}, "Optimizer: unknown key; did you mean 'optimizer'?"),
        ({"Memory": "auto"}, "Memory: unknown key; did you mean 'memory'?"),
        ({"optimizer": {"learning_rate": 1}}, "optimizer.learning_rate: unknown key"),
        ({"train": {"step": 5}}, "did you mean 'steps'?"),
        (
            {"memory": {"gradient_checkpoint": 1}},
            "memory.gradient_checkpoint: unknown key; did you mean 'gradient_checkpointing'?",
        ),
        ({"validate": {"fractoin": 0.1}}, "did you mean 'fraction'?"),
        ({"optimizer": {"name": "adamw8bitt"}}, "did you mean 'adamw8bit'?"),
        ({"optimizer": {"name": "adamw8"}}, "'adamw8' is not one of adamw, adamw8bit, "),
        ({"tracker": "wandbb"}, "did you mean 'wandb'?"),
        ({"tracker": False}, "tracker: False is not one of none, wandb, tensorboard"),
        ({"export": ["comfy"]}, "did you mean 'comfyui'?"),
        ({"memory": "aut"}, "memory: 'aut' is not one of auto; did you mean 'auto'?"),
        ({"adapter": {"targets": "attn"}}, "'attn' is not one of attention; did you mean 'attention'?"),
        ({"trigger": 2024}, "trigger: 2024 is not read as text; put it in quotes"),
    ],
)
def test_an_unknown_key_or_value_is_refused_with_the_nearest_valid_one(changes, words):
    assert words in problem(**changes)
    assert "instance of" not in problem(**changes)  # what the other branch of a union has to say


NUMBERS = ("1e-4", "1E-4", "+1.e-4", "0.1e-3", ".1e-3", "0.0001")


@pytest.mark.parametrize("text", NUMBERS)
def test_a_number_with_an_exponent_is_a_number(text, tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text(f"base: tiny-dit\ndataset: d\nout: o\noptimizer: {{lr: {text}}}\n")
    assert recipe.load_recipe(file).optimizer.lr == pytest.approx(1e-4)
    assert recipe.load_recipe(
        file, [f"optimizer.weight_decay={text}"]
    ).optimizer.weight_decay == pytest.approx(1e-4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        *(({"optimizer": {"lr": bad}}, "optimizer.lr") for bad in (0, -1e-4, NAN, INF, True, "1e-4")),
        *(({"adapter": {"rank": bad}}, "adapter.rank") for bad in (0, -1, 1.5, True, "16", 10**9)),
        *(({"adapter": {"alpha": bad}}, "adapter.alpha") for bad in (0, -1, NAN)),
        *(({"train": {"batch_size": bad}}, "train.batch_size") for bad in (0, -1, True, 2.0)),
        *(({"train": {key: 0}}, f"train.{key}") for key in ("steps", "accumulate", "save_every", "keep")),
        ({"train": {"seed": 2**63}}, "train.seed"),
        ({"train": {"deterministic": "yes"}}, "train.deterministic"),
        ({"optimizer": {"betas": [0.9, 1.0]}}, "optimizer.betas.1"),
        ({"optimizer": {"max_grad_norm": 0}}, "optimizer.max_grad_norm"),
        ({"optimizer": {"weight_decay": NAN}}, "optimizer.weight_decay"),
        ({"samples": {"guidance_scale": INF}}, "samples.guidance"),
        ({"validate": {"fraction": 1}}, "validate.fraction"),
        ({"memory": {"gradient_checkpointing": 1.5}}, "memory.gradient_checkpointing"),
        ({"memory": {"stream": -0.5}}, "memory.stream"),
        ({"adapter": {"targets": []}}, "adapter.targets"),
        ({"resolution": 0}, "resolution"),
        ({"resolution": 10**6}, "resolution"),
    ],
)
def test_an_impossible_number_is_refused(changes, words):
    assert words in problem(**changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optimizer": {"warmup": 20}, "train": {"steps": 10}}, "would never be reached"),
        ({"optimizer": {"name": "prodgy"}}, "did you mean 'prodigy'?"),
        ({"adapter": {"text_encoder": True, "type": "none"}}, "has no text_encoder"),
        ({"adapter": {"type": "loha"}, "memory": {"quantize": "nf4"}}, "use int8 or fp8"),
        ({"slider": SLIDER, "caption_use": {"caption_dropout": 0.1}}, "leave out caption_use"),
        ({"slider": SLIDER, "adapter": {"text_encoder": True}}, "leave out adapter.text_encoder"),
        ({"adapter": {"text_encoder_lr": 1e-3}}, "text_encoder_lr has no effect"),
    ],
)
def test_incompatible_settings_are_refused(changes, words):
    assert words in problem(**changes)


def test_every_problem_is_listed_at_once():
    text = problem(train={"steps": 0, "seeed": 1}, adapter={"rank": -1})
    assert "train.steps" in text
    assert "train.seeed" in text
    assert "adapter.rank" in text


def test_missing_keys_are_named():
    with pytest.raises(ConfigError, match="out: this key is required"):
        recipe.parse_recipe({"base": "x", "dataset": "y"})


def test_dotted_overrides(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text("base: tiny-dit\ndataset: d\nout: o\n")
    made = recipe.load_recipe(
        file, ["optimizer.lr=3e-4", "memory.gradient_checkpointing=1", "export=[diffusers]"]
    )
    assert made.optimizer.lr == 3e-4
    assert made.memory.gradient_checkpointing == 1
    assert made.export == ["diffusers"]
    with pytest.raises(ConfigError, match="did you mean 'lr'"):
        recipe.load_recipe(file, ["optimizer.lrr=1"])
    with pytest.raises(ConfigError, match="key=value"):
        recipe.load_recipe(file, ["optimizer.lr"])


@pytest.mark.parametrize(
    "text",
    [
        "base: !!python/object/apply:os.system ['touch canary']\n",
        "base: !!python/object/new:pathlib.PosixPath [canary]\n",
        "base: &a [x]\nout: *a\n",
        "a: &a [x,x]\nb: &b [*a,*a,*a]\nc: [*b,*b,*b]\n",
        "<<: {base: a}\n",
        "base: a\nbase: b\n",
        "base: [unclosed\n",
        "? [a]\n: 1\n",
        "1: 2\n",
        "yes: 1\n",
        "- a list\n",
        "base: a\n---\nbase: b\n",
        "base: a\0b\n",
        "train: {steps: 1" + "0" * 5000 + "}\n",
        "base: " + "[" * 100_000,
        "base: " + "x" * (300 << 10),
        "",
    ],
)
def test_hostile_or_broken_yaml_is_one_error(tmp_path, text, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "r.yaml"
    file.write_text(text)
    began = time.process_time()
    with pytest.raises(ConfigError, match=r"r\.yaml"):
        recipe.load_recipe(file)
    assert time.process_time() - began < 2
    assert [p.name for p in tmp_path.iterdir()] == ["r.yaml"]


@pytest.mark.parametrize("text", ["010", "1:30", "0x10", "1_000"])
def test_numbers_in_the_special_notations_of_yaml_1_1_are_refused(text):
    assert strict_yaml.parse_yaml(f"a: {text}", "r.yaml") == {"a": text}


def test_a_huge_file_is_not_read(tmp_path):
    file = tmp_path / "r.yaml"
    with open(file, "wb") as handle:
        handle.truncate(50 << 30)  # sparse
    with pytest.raises(ConfigError, match="larger than 256 KiB"):
        recipe.load_recipe(file)


@pytest.mark.parametrize(
    ("data", "message"),
    [("base: é".encode("cp1252"), "byte 6"), ("base: a".encode("utf-16"), "UTF-16, not UTF-8")],
    ids=["1252", "16"],
)
def test_a_recipe_in_another_encoding_names_the_byte(tmp_path, data, message):
    file = tmp_path / "rezépt.yaml"
    file.write_bytes(data)
    with pytest.raises(ConfigError, match=message):
        recipe.load_recipe(file)


def test_cyrillic_blanks_and_a_byte_order_mark_are_fine(tmp_path):
    file = tmp_path / "мой рецепт.yaml"
    file.write_text(
        "base: tiny-dit\ndataset: мои фото\nout: выход/пёс 1\ntrigger: пёс\n", encoding="utf-8-sig"
    )
    made = recipe.load_recipe(file)
    assert (str(made.dataset), str(made.out), made.trigger) == ("мои фото", "выход/пёс 1", "пёс")


@pytest.mark.parametrize("key", ["base", "dataset", "out", "init_from", "trigger"])
@pytest.mark.parametrize("value", [" runs/a", "runs/a ", "", "runs/a\n"])
def test_blanks_around_a_path_are_refused(key, value):
    assert f"{key}: it is empty, or begins or ends with a space" in problem(**{key: value})


@pytest.mark.parametrize("key", recipe.NON_TRAINING_KEYS)
def test_settings_that_may_change_are_keys_of_the_recipe(key):
    flat = recipe.parse_recipe(BASE | {"memory": {}}).dump()
    for part in key.split("."):
        assert part in flat
        flat = flat[part]


def test_the_hash_ignores_what_cannot_change_the_adapter():
    plain = recipe.parse_recipe(BASE)
    free = recipe.parse_recipe(
        BASE | {"out": "elsewhere", "samples": {"every": 7}, "train": {"save_every": 3}}
    )
    other = recipe.parse_recipe(BASE | {"train": {"seed": 1}})
    assert recipe.recipe_hash(plain) == recipe.recipe_hash(free)
    assert recipe.recipe_hash(plain) != recipe.recipe_hash(other)


def test_a_dumped_recipe_reads_back_equal():
    made = recipe.parse_recipe(
        BASE | {"validate": {"fraction": 0.1}, "memory": {"gradient_checkpointing": 1}}
    )
    assert recipe.parse_recipe(made.dump()) == made


@pytest.mark.parametrize("file", sorted(recipe.builtin_recipes_folder().glob("*.yaml")), ids=lambda f: f.name)
def test_every_recipe_that_ships_parses_and_says_what_it_is(file):
    made = recipe.load_recipe(file)
    assert file.read_text().startswith("# ")
    assert made.resolution % 16 == 0


@pytest.mark.parametrize(
    ("section", "checkpointing", "quantized"),
    [
        ({}, None, None),
        ({"quantize": "nf4"}, None, "nf4"),
        ({"quantize": "int8", "gradient_checkpointing": None}, None, "int8"),
        ({"gradient_checkpointing": 0, "quantize": "none"}, 0, "none"),
        ({"gradient_checkpointing": 1, "quantize": "nf4"}, 1, "nf4"),
        ("auto", None, None),
    ],
)
def test_a_partial_memory_section_leaves_the_rest_automatic(section, checkpointing, quantized):
    parsed = recipe.parse_recipe(BASE | {"memory": section})
    again = recipe.parse_recipe(parsed.dump())
    for config in (parsed.memory_config, again.memory_config):
        assert (config.gradient_checkpointing, config.quantize) == (checkpointing, quantized)
    fixed = memory_plan.fixed_settings(parsed)
    assert (fixed.gradient_checkpointing, fixed.quantize) == (checkpointing, quantized)
    assert (fixed.stream, fixed.offload_activations, fixed.offload_modulation) == (None, None, None)


@pytest.mark.parametrize(
    ("override", "key", "kept"),
    [
        ("optimizer={lr: 2e-4}", "schedule", "cosine"),
        ("train={steps: 500}", "batch_size", 2),
        ("adapter={rank: 4}", "alpha", 16.0),
    ],
)
def test_an_override_of_a_section_keeps_its_other_keys(override, key, kept):
    section = override.partition("=")[0]
    parsed = recipe.load_recipe("sd15", [override])
    assert getattr(getattr(parsed, section), key) == kept
    changed = recipe.change_recipe(parsed, ["memory.quantize=nf4", "memory.gradient_checkpointing=1"])
    changed = recipe.change_recipe(changed, ["memory={quantize: int8}"])
    config = changed.memory_config
    assert (config.quantize, config.gradient_checkpointing) == ("int8", 1)
