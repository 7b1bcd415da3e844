"""A published run: its folder, private data that stays out, the upload to a local fake of the hub's API."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from PIL import Image

from lorakit import manifest
from lorakit.adapters import formats
from lorakit.adapters.formats.export import export_loaded_adapter
from lorakit.adapters.formats.metadata import with_public_details
from lorakit.adapters.publishing import card_facts, hub_upload, model_card, private_data, publication
from lorakit.adapters.sources import parse_adapter_source
from lorakit.cli import main
from lorakit.cli.json_answers import JSON_ANSWERS
from lorakit.core import checksums, storage
from lorakit.core.errors import ConfigError
from tests import commands
from tests.adapters.publishing import fake_hub, run_folders
from tests.network import servers

NAME = "me/sks-lora"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run and its evaluation, and another run that was not evaluated."""
    root = tmp_path_factory.mktemp("run")
    run_folders.make_run(root, evaluated=True)
    shutil.copytree(root / "run", root / "not-evaluated")
    shutil.rmtree(root / "not-evaluated/eval")
    return root


def build(run: Path, out: Path, **options: str) -> publication.Publication:
    """Build the folder as the command does."""
    return publication.build_publication(
        parse_adapter_source(str(run)), out, publication.PublishOptions(**options)
    )


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[fake_hub.FakeHub]:
    """A fake hub that this process talks to, with a token."""
    import huggingface_hub

    served = fake_hub.FakeHub()
    with fake_hub.running(served) as address:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", fake_hub.TOKEN)
        yield served


def front_matter(card: str) -> dict[str, object]:
    match = re.match(r"---\n(.*?)\n---\n", card, re.S)
    assert match is not None
    return dict(yaml.safe_load(match[1]))


def test_the_folder_has_card_thumbnail_adapter_and_evaluation(trained, tmp_path):
    built = build(trained / "run", tmp_path / "out", license="apache-2.0", repository=NAME)
    adapters = {f"adapter-{name}.safetensors" for name in ("diffusers", "native")}
    examples = {f"examples/example-{number}.png" for number in (1, 2, 3)}
    others = {"README.md", "evaluation.json", "publication.json", "samples.png", "thumbnail.jpg"}
    assert set(built.files) == adapters | examples | others
    card = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    values = front_matter(card)
    assert values["license"] == "apache-2.0"
    assert values["instance_prompt"] == "sks"
    assert "lora" in values["tags"]
    assert values["widget"][0] == {"text": "a red circle", "output": {"url": "examples/example-1.png"}}
    for text in (
        "# sks-lora",
        "rank 4",
        "4 images",
        "## Evaluation",
        "CLIP-T",
        "95 % intervals",
        "64x64 (2)",
    ):
        assert text in card
    numbers = storage.read_json(tmp_path / "out/evaluation.json")
    assert numbers["num_prompts"] == 3
    assert {"score", "adapter", "base", "change", "prompts", "meaning"} == set(numbers["scores"][0])
    with Image.open(tmp_path / "out/thumbnail.jpg") as image:
        assert max(image.size) <= 256
    adapter = storage.read_safetensors_metadata(tmp_path / "out/adapter-diffusers.safetensors")
    assert adapter["modelspec.thumbnail"].startswith("data:image/jpeg;base64,")
    assert adapter["modelspec.usage_hint"] == "Write sks in the prompt."
    assert (adapter["ss_steps"], adapter["ss_resolution"], adapter["ss_sd_model_name"]) == (
        "2", "(64, 64)", "tiny-dit",
    )  # fmt: skip


def test_nothing_of_the_training_data_is_in_the_folder(trained, tmp_path):
    """No caption, file name or folder in any text, no training image among the pictures."""
    built = build(trained / "run", tmp_path / "out")
    records = manifest.load_manifest(trained / "data")
    words = [caption.text for record in records for caption in record.captions]
    words += [record.file for record in records] + [str(trained), "data", record_folder(trained)]
    for name in built.files:
        data = (tmp_path / "out" / name).read_bytes()
        for word in words:
            pattern = rb"(?<![\w-])" + re.escape(word.encode()) + rb"(?![\w-])"
            is_text = name.endswith((".md", ".json"))
            assert not re.search(pattern, data if is_text else data[: 1 << 16]) or word == "data", (
                name,
                word,
            )
    hashes = {record.sha256 for record in records}
    assert hashes.isdisjoint(checksums.sha256_file(tmp_path / "out" / name) for name in built.files)


def record_folder(root: Path) -> str:
    return root.name


def test_prompts_are_left_out_when_the_dataset_is_gone(trained, tmp_path):
    """Nobody can say any more whether they repeat captions."""
    shutil.copytree(trained / "run", tmp_path / "run")
    recipe = tmp_path / "run/recipe.yaml"
    storage.write_text(recipe, recipe.read_text().replace(str(trained / "data"), str(tmp_path / "gone")))
    built = build(tmp_path / "run", tmp_path / "out")
    assert not [name for name in built.files if name.startswith("examples/")]
    card = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert "a red circle" not in card
    assert "| images | 4 |" in card  # the record of the run has it
    assert "CLIP-T" in card


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a sks picture number 2", True),
        ("A SKS picture, number 2!", True),
        ("before a sks picture number 2 and after", True),
        ("a copy of 3.png", True),
        ("look at holiday_12.JPG", True),
        ("a sks picture on a beach", False),
        ("use step 400 at strength 1", False),
    ],
)
def test_a_text_that_repeats_training_data_is_recognized(text, expected, trained):
    private = private_data.read_private_data(card_facts.load_recipe(trained / "run/recipe.yaml"))
    assert private.repeats(text) is expected


def test_a_run_without_evaluation_says_so(trained, tmp_path):
    built = build(trained / "not-evaluated", tmp_path / "out")
    assert not built.is_evaluated
    assert "evaluation.json" not in built.files
    assert "examples/example-1.png" in built.files  # samples of the training
    card = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert "This run was not evaluated." in card
    assert "| score |" not in card


def test_another_checkpoint_or_strength_does_not_have_the_scores_of_the_selected_one(trained):
    source = parse_adapter_source(f"{trained / 'run'}:0.5")
    facts = card_facts.read_card_facts(source)
    assert facts.evaluation is None
    text = model_card.format_card(facts, model_card.CardContents())
    assert "not the one that its evaluation selected" in text
    assert "use strength 0.5" in text


def test_every_export_of_a_run_has_a_card_and_an_edited_one_stays(trained, tmp_path, capsys):
    arguments = ["export", str(trained / "run"), "--for", "diffusers", "--out", str(tmp_path)]
    assert main.main([*arguments, "--no-card"]) == 0
    assert [file.name for file in tmp_path.iterdir()] == ["adapter-diffusers.safetensors"]
    assert "modelspec.thumbnail" not in storage.read_safetensors_metadata(
        tmp_path / "adapter-diffusers.safetensors"
    )
    assert main.main(arguments) == 0
    card = tmp_path / "README.md"
    text = card.read_text(encoding="utf-8")
    assert "CLIP-T" in text
    assert (tmp_path / "samples.png").is_file()
    storage.write_text(card, text.replace("## Use", "## My own words"))
    assert main.main(arguments) == 0
    assert "My own words" in card.read_text(encoding="utf-8")
    assert "written or edited by somebody" in capsys.readouterr().err


def test_a_thumbnail_changes_no_tensor_and_keeps_the_header_small(trained, tmp_path):
    build(trained / "run", tmp_path / "out")
    plain = formats.export_adapter(
        parse_adapter_source(str(trained / "run")).path, "diffusers", tmp_path / "plain"
    )[0]
    published = tmp_path / "out/adapter-diffusers.safetensors"
    first, second = (formats.read_adapter_file(file) for file in (plain.path, published))
    assert first.deltas.keys() == second.deltas.keys()
    assert all((first.deltas[m].dense() == second.deltas[m].dense()).all() for m in first.deltas)
    assert int.from_bytes(published.read_bytes()[:8], "little") < 1 << 20


def test_a_thumbnail_that_would_fill_the_header_is_left_out(trained, tmp_path):
    adapter = formats.read_adapter_file(parse_adapter_source(str(trained / "run")).path)
    for size, is_shown in ((1 << 19, True), (1 << 20, False)):
        detailed = with_public_details(adapter, thumbnail=bytes(size), base="org/model")
        (file,) = export_loaded_adapter(detailed, "diffusers", tmp_path / str(size))
        metadata = storage.read_safetensors_metadata(file.path)
        assert ("modelspec.thumbnail" in metadata) is is_shown
        assert metadata["ss_sd_model_name"] == "org/model"


def test_the_commands_of_the_guide_are_valid():
    text = (Path(__file__).parents[3] / "examples/publishing.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", text, re.S)
    lines = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    assert len(lines) == 4
    assert [commands.parse(line[1:]) for line in lines]


def test_the_same_folder_is_written_again_and_another_is_refused(trained, tmp_path):
    out = tmp_path / "out"
    build(trained / "run", out)
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    storage.write_text(out / "LICENSE.txt", "mine")
    again = build(trained / "run", out)
    assert "LICENSE.txt" in again.files
    assert all(file.read_bytes() == data for file, data in before.items() if file.name != "publication.json")
    storage.write_text(tmp_path / "other/notes.txt", "x")
    with pytest.raises(ConfigError, match="other files"):
        build(trained / "run", tmp_path / "other")


# ---- the upload --------------------------------------------------------------------------------------------


def test_a_new_private_repository_has_all_files_after_one_commit(trained, tmp_path, hub):
    built = build(trained / "run", tmp_path / "out", repository=NAME)
    uploaded = hub_upload.upload_publication(built, NAME)
    repository = hub.repositories[NAME]
    assert repository.private
    assert uploaded.is_private
    assert set(uploaded.uploaded) == set(built.files)
    assert {name: repository.files[name] for name in built.files} == {
        name: (tmp_path / "out" / name).read_bytes() for name in built.files
    }
    assert repository.commits == 2
    assert {"README.md", "thumbnail.jpg", "adapter-diffusers.safetensors", "evaluation.json"} <= set(
        repository.files
    )


def test_publishing_again_replaces_only_what_was_published(trained, tmp_path, hub):
    built = build(trained / "run", tmp_path / "out", repository=NAME)
    hub_upload.upload_publication(built, NAME)
    assert hub_upload.upload_publication(built, NAME).uploaded in ((), ("publication.json",))
    hub.repositories[NAME].files["notes.md"] = b"of somebody else"
    (tmp_path / "out/samples.png").unlink()
    changed = build(
        trained / "run", tmp_path / "out", repository=NAME, title="Another title", consumer="diffusers"
    )
    uploaded = hub_upload.upload_publication(changed, NAME)
    assert uploaded.removed == ("adapter-native.safetensors",)
    assert "README.md" in uploaded.uploaded
    assert b"# Another title" in hub.read(NAME, "README.md")
    assert hub.read(NAME, "notes.md") == b"of somebody else"


@pytest.mark.parametrize("replace_files", [False, True])
def test_files_of_somebody_else_are_replaced_only_on_request(replace_files, trained, tmp_path, hub):
    built = build(trained / "run", tmp_path / "out", repository=NAME)
    hub.repositories[NAME] = fake_hub.Repository(files={"README.md": b"my own card"})
    if replace_files:
        hub_upload.upload_publication(built, NAME, replace_files=True)
        assert hub.read(NAME, "README.md") == (tmp_path / "out/README.md").read_bytes()
        return
    with pytest.raises(ConfigError, match=r"other files of these names: README\.md"):
        hub_upload.upload_publication(built, NAME)
    assert hub.read(NAME, "README.md") == b"my own card"


def test_a_card_that_was_edited_on_the_hub_is_not_overwritten(trained, tmp_path, hub):
    built = build(trained / "run", tmp_path / "out", repository=NAME)
    hub_upload.upload_publication(built, NAME)
    hub.repositories[NAME].files["README.md"] = b"edited on the page"
    changed = build(trained / "run", tmp_path / "out", repository=NAME, title="Another")
    with pytest.raises(ConfigError, match=r"README\.md"):
        hub_upload.upload_publication(changed, NAME)


def test_nothing_goes_to_a_public_repository_without_being_asked(trained, tmp_path, hub):
    built = build(trained / "run", tmp_path / "out", repository=NAME)
    hub.repositories[NAME] = fake_hub.Repository(private=False)
    with pytest.raises(ConfigError, match="this repository is public"):
        hub_upload.upload_publication(built, NAME)
    assert set(hub.repositories[NAME].files) == {".gitattributes"}
    assert not hub_upload.upload_publication(built, NAME, public=True).is_private
    del hub.repositories[NAME]
    hub_upload.upload_publication(built, NAME, public=True)
    assert not hub.repositories[NAME].private


def test_each_reason_of_a_failed_upload_is_named_with_what_to_do(trained, tmp_path, hub, monkeypatch):
    built = build(trained / "run", tmp_path / "out")

    def refusal(name: str = NAME) -> str:
        with pytest.raises(ConfigError) as caught:
            hub_upload.upload_publication(built, name)
        return str(caught.value)

    for name in ("dog", "a/b/c", "me/", "me/x y", "../x"):
        assert "not the name of a repository" in refusal(name)
    assert "no right to write" in refusal("others/dog")
    hub.repositories["others/dog"] = fake_hub.Repository()
    assert "no right to write" in refusal("others/dog")
    hub.broken = 412
    assert "changed or created by somebody else" in refusal()
    hub.broken = 418
    assert "refuses the upload (418)" in refusal()
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    text = refusal()
    assert "does not accept the token" in text
    assert "hf_wrong" not in text
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    text = refusal()
    assert "no token of the model hub" in text
    assert "hf auth login" in text


def test_a_hub_that_cannot_be_reached_is_named(trained, tmp_path, hub, monkeypatch):
    import huggingface_hub

    built = build(trained / "run", tmp_path / "out")
    with servers.faulty("refused") as address:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        with pytest.raises(ConfigError, match="cannot be reached") as caught:
            hub_upload.upload_publication(built, NAME)
    assert "HF_ENDPOINT" in str(caught.value)


def test_the_command_uploads_only_with_a_repository(trained, tmp_path, hub, capsys):
    arguments = ["publish", str(trained / "run"), "--out", str(tmp_path / "out"), "--json"]
    assert main.main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["upload"] is None
    assert main.main([*arguments, "--to", NAME, "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["upload"] is None
    assert hub.requests == []
    assert main.main([*arguments, "--to", NAME]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer.keys() == JSON_ANSWERS["publish"].keys()
    assert answer["upload"]["repository"] == NAME
    assert sorted(answer["upload"]["uploaded"]) == sorted(answer["files"])


def test_the_endpoint_of_the_environment_is_used(trained, tmp_path):
    """In a process of its own, as people run it."""
    served = fake_hub.FakeHub()
    with fake_hub.running(served) as address:
        settings = {"HF_ENDPOINT": address, "HF_TOKEN": fake_hub.TOKEN, "HF_HUB_OFFLINE": "0"}
        settings |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        command = [sys.executable, "-m", "lorakit", "publish", str(trained / "run"), "--to", NAME]
        done = subprocess.run(
            [*command, "--out", str(tmp_path / "out")],
            env=os.environ | settings,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    assert "(private)" in done.stdout
    assert "README.md" in served.repositories[NAME].files
