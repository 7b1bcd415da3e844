"""The page of a vote by real requests: what is refused, what is counted, and that it stays blind."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys

import pytest
from PIL import Image

from lorakit.core import storage
from lorakit.core.errors import ConfigError, DataError
from lorakit.evaluation.vote import run_vote
from lorakit.evaluation.vote.server import HEADERS, normalize_name
from lorakit.evaluation.vote.vote_file import VOTES_FILE, VoteFile
from tests.evaluation.simulated import Truth
from tests.evaluation.vote.ballots import make_evaluation, open_session, serving


@pytest.fixture
def root(tmp_path):
    make_evaluation(tmp_path)
    return tmp_path


@pytest.fixture
def client(root):
    with serving(open_session(root)) as client:
        yield client


def num_votes(root) -> int:
    return len(VoteFile(root).read().votes)


# ---- voting ------------------------------------------------------------------------------------------------


def test_a_vote_is_written_at_once_and_the_next_pair_follows(client, root):
    first = client.page()
    assert first.status == 200
    assert "a sks dog" in first.text
    answer = client.vote("left")
    assert answer.status == 303
    (vote,) = VoteFile(root).read().votes
    assert vote.choice == "left"
    assert {vote.left, vote.right} == {"step-200", "step-300"}
    second = client.follow(answer)
    assert second.field("position") != first.field("position")
    assert second.images != first.images
    assert "1 vote so far" in second.text


def test_the_page_is_blind(client, root):
    """Neither the page nor the addresses and answers of its images say which variant is on which side."""
    for _ in range(6):
        page = client.page()
        assert not re.search(r"step|200|300", re.sub(r"\d+ to \d+", "", page.text))
        for address in page.images:
            image = client.request(address)
            assert (image.status, image.headers["content-type"]) == (200, "image/png")
            assert "step" not in json.dumps(image.headers)
            assert "last-modified" not in image.headers
        client.vote("too_close")
    votes = VoteFile(root).read().votes
    assert {vote.left for vote in votes} == {"step-200", "step-300"}  # the sides change


def test_the_images_are_those_that_the_vote_is_about(client, root):
    for _ in range(4):
        page = client.page()
        shown = [client.request(address).data for address in page.images]
        client.vote("right")
        vote = VoteFile(root).read().votes[-1]
        for side, data in zip((vote.left, vote.right), shown, strict=True):
            assert data == (root / side / f"{vote.prompt_id}-{vote.seed}.png").read_bytes()


def test_a_double_click_counts_once(client, root):
    position = client.page().field("position")
    answers = [client.vote("left", position=position), client.vote("left", position=position)]
    assert num_votes(root) == 1
    assert "voted on already" in client.follow(answers[1]).text


def test_two_windows_agree(client, root):
    """A vote in a window that is behind is not counted for the pair that another window shows by then."""
    behind = client.page().field("position")
    client.vote("left")
    client.vote("left", position=behind)
    assert num_votes(root) == 1
    assert client.page().field("position") != behind


def test_the_last_vote_can_be_taken_back(client, root):
    first = client.page().field("position")
    client.vote("left")
    page = client.follow(client.request("undo", {"voter": "", "more": ""}))
    assert page.field("position") == first
    assert num_votes(root) == 0
    client.request("undo", {"voter": "", "more": ""})  # nothing left to take back
    client.vote("right")
    assert [vote.choice for vote in VoteFile(root).read().votes] == ["right"]


def test_every_voter_has_an_order_and_an_undo_of_their_own(client, root):
    client.vote("left", voter="Anna")
    client.vote("right", voter="Otto")
    client.request("undo", {"voter": "Anna", "more": ""})
    assert [vote.voter for vote in VoteFile(root).read().votes] == ["Otto"]
    assert "1 vote so far" in client.page("Otto").text
    assert "0 votes so far" in client.page("Anna").text


def test_the_end_of_the_test_is_shown_with_its_result_and_voting_may_continue(client, root):
    answer = None
    while not (answer and answer.headers["location"].startswith("result")):
        page = client.page(more="1")
        position = page.field("position")
        pairs = open_session(root).items("")[int(position)]
        answer = client.vote("left" if pairs.left == "step-300" else "right", position=position)
        answer = client.request(answer.headers["location"])
        if answer.status == 200:
            answer = None
    result = client.follow(answer)
    assert "step-300 is preferred to step-200" in result.text
    assert "lorakit eval report" in result.text
    count = num_votes(root)
    assert 8 <= count <= 16
    page = client.page(more="1")
    client.vote("too_close", position=page.field("position"))
    assert num_votes(root) == count + 1
    assert "is preferred to" in client.request("result").text


def test_after_the_last_pair_the_result_is_shown(tmp_path):
    make_evaluation(tmp_path, prompts=1)
    with serving(open_session(tmp_path)) as client:
        for _ in range(4):
            client.vote("both_bad")
        page = client.page(more="1")
    assert "Not decided yet" in page.text
    assert "every pair was voted on" in page.text
    assert "Go back to voting" not in page.text


# ---- continuing --------------------------------------------------------------------------------------------


def test_a_vote_continues_after_a_restart(root):
    with serving(open_session(root)) as client:
        client.vote("left")
        client.vote("right")
        before = client.page()
    with serving(open_session(root)) as again:
        page = again.page()
        assert again.address != client.address
        assert page.field("position") == before.field("position")
        assert "2 votes so far" in page.text


def test_a_vote_continues_after_a_line_was_cut_off(root):
    with serving(open_session(root)) as client:
        client.vote("left")
        position = client.page().field("position")
        client.vote("left")
    file = root / VOTES_FILE
    file.write_bytes(file.read_bytes()[:-20])
    with serving(open_session(root)) as client:
        assert client.page().field("position") == position
        client.vote("right")
    assert [vote.choice for vote in VoteFile(root).read().votes] == ["left", "right"]


def test_a_file_damaged_by_hand_is_an_error_with_its_line(client, root):
    client.vote("left")
    file = root / VOTES_FILE
    file.write_text(file.read_text() + "{}\n")
    answer = client.request("")
    assert answer.status == 500
    assert "votes.jsonl, row 3" in answer.text
    with pytest.raises(DataError):
        open_session(root)
    file.write_text("\n".join(file.read_text().splitlines()[:2]) + "\n")


def test_a_pair_whose_images_were_sampled_again_is_asked_for_again(root):
    with serving(open_session(root)) as client:
        position = client.page().field("position")
        client.vote("left")
        assert client.page().field("position") != position
        vote = VoteFile(root).read().votes[0]
        Image.new("RGB", (50, 50)).save(root / vote.left / f"{vote.prompt_id}-{vote.seed}.png")
        assert client.page().field("position") == position
        client.vote("right")
        assert client.page().field("position") != position
        assert "not counted" in client.request("result").text


def test_images_that_are_missing_are_not_asked_for(root):
    for seed in range(4):
        (root / f"step-300/s0-{seed}.png").unlink()
        storage.write_bytes(root / f"step-200/s1-{seed}.png", b"<html>not an image")
    items = open_session(root).items("")
    assert {item.key.prompt_id for item in items} == {f"s{number}" for number in range(2, 8)}


def test_without_any_image_there_is_a_remedy(root):
    for file in (root / "step-300").iterdir():
        file.unlink()
    with pytest.raises(DataError) as refused:
        open_session(root)
    assert "lorakit eval run" in refused.value.remedy


# ---- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/wrong/", "/wrong/vote", "/wrong/image/0/left", "/style.css"])
def test_nothing_is_served_without_the_token(client, path):
    assert client.request(raw=path).status == 404


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil", "", "[::1", "a@evil"],
)
def test_a_name_that_leads_here_is_refused(client, host):
    """DNS rebinding: the page of another site whose name was pointed to 127.0.0.1."""
    assert client.request(Host=host).status in (400, 403)


@pytest.mark.parametrize("host", ["localhost:{}", "127.0.0.1:{}", "localhost:9000", "[::1]:{}"])
def test_the_names_of_this_machine_are_served_also_through_a_tunnel(client, host):
    assert client.request(Host=host.format(client.host.rpartition(":")[2])).status == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1", "http://127.0.0.1:1"])
@pytest.mark.parametrize("path", ["vote", "undo", "finish"])
def test_a_form_of_another_site_is_refused(client, root, origin, path):
    client.vote("left")
    form = {"voter": "", "position": client.page().field("position"), "choice": "left"}
    assert client.request(path, form, Origin=origin).status == 403
    assert num_votes(root) == 1
    assert client.page().status == 200


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"position": "0"},
        {"position": "0", "choice": "maybe"},
        {"position": "-1", "choice": "left"},
        {"position": "../0", "choice": "left"},
        {"position": "", "choice": "left"},
        {"choice": "left", "filler": "x" * 10_000, "position": "0"},
    ],
)
def test_incomplete_forms_are_refused(client, root, form):
    assert client.request("vote", form).status == 400
    assert num_votes(root) == 0


def test_a_position_that_does_not_exist_is_not_counted(client, root):
    assert client.vote("left", position="99999").status == 303
    assert num_votes(root) == 0


@pytest.mark.parametrize(
    "path",
    [
        "image/0/../../scores.json",
        "image/0/%2e%2e",
        "image/0/..%2f..%2fscores.json",
        "image/99999/left",
        "image/-1/left",
        "image/0/base",
        "../scores.json",
        "%2e%2e/scores.json",
        "scores.json",
        "votes.jsonl",
        "reference/0",
        "reference/-1",
        "style.css/../vote.html",
        "vote.html",
        "//etc/passwd",
    ],
)
def test_only_the_images_of_the_vote_are_served(client, path):
    token = client.address.rstrip("/").rpartition("/")[2]
    assert client.request(raw=f"/{token}/{path}").status in (404, 405)


@pytest.mark.parametrize("file", ["../outside.png", "/etc/hostname", "link.png"])
def test_a_run_shows_only_images_in_its_own_folder(tmp_path, file):
    """scores.json of a downloaded run may name any file."""
    run = tmp_path / "run"
    make_evaluation(run / "eval")
    storage.write_text(run / "recipe.yaml", "")
    Image.new("RGB", (9, 9)).save(tmp_path / "outside.png")
    Image.new("RGB", (9, 9)).save(run / "outside.png")
    (run / "eval/link.png").symlink_to(tmp_path / "outside.png")
    scores = storage.read_json(run / "eval/scores.json")
    for variant in scores["variants"]:
        for row in variant["images"]:
            if row["prompt_id"] == "s0":
                row["file"] = file
    storage.write_json(run / "eval/scores.json", scores)
    assert "s0" not in {item.key.prompt_id for item in open_session(run).items("")}


def test_every_answer_has_the_security_headers(client):
    for answer in (
        client.page(),
        client.request("style.css"),
        client.request(raw="/wrong"),
        client.vote("left"),
    ):
        for name, value in HEADERS.items():
            assert answer.headers[name.lower()] == value
    page = client.page()
    assert page.headers["cache-control"] == "no-store"
    policy = dict(rule.strip().split(" ", 1) for rule in HEADERS["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert {policy[name] for name in ("img-src", "style-src", "script-src", "form-action")} == {"'self'"}
    assert not re.search(r"<script(?![^>]* src=)|<style| style=| on\w+=|https?://", page.text)


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "{{7*7}}", '"><img src=x>', "a\u202eb\x1b[2J"])
def test_names_and_prompts_are_text(tmp_path, name):
    evaluation = make_evaluation(tmp_path, prompts=2)
    scores = evaluation.to_json()
    for row in scores["prompts"]:
        row["prompt"] = name
    storage.write_json(tmp_path / "scores.json", scores)
    with serving(open_session(tmp_path)) as client:
        page = client.page(name)
        client.vote("left", voter=name)
        result = client.request("result")
    for answer in (page, result):
        assert answer.status == 200
        assert "<script>alert" not in answer.text
        assert "<img src=x" not in answer.text
        assert "\u202e" not in answer.text
        assert ">49<" not in answer.text
    (vote,) = VoteFile(tmp_path).read().votes
    assert vote.voter == normalize_name(name)


@pytest.mark.parametrize(
    ("name", "normal"),
    [("  Anna \n Berg ", "Anna Berg"), ("x" * 100, "x" * 60), ("\x1b[2J", "\\x1b[2J"), ("", "")],
)
def test_the_name_of_a_voter_is_one_short_line(name, normal):
    assert normalize_name(name) == normal


def test_formats_that_browsers_lack_are_sent_as_png(tmp_path):
    evaluation = make_evaluation(tmp_path, prompts=1)
    for variant in evaluation.variants:
        for key, file in variant.files.items():
            variant.files[key] = file.replace(".png", ".tiff")
            with Image.open(tmp_path / file) as image:
                storage.save_image(tmp_path / variant.files[key], image)
    storage.write_json(tmp_path / "scores.json", evaluation.to_json())
    with serving(open_session(tmp_path)) as client:
        answer = client.request(client.page().images[0])
    assert answer.headers["content-type"] == "image/png"
    with Image.open(io.BytesIO(answer.data)) as image:
        assert image.size == (48, 40)


def test_a_port_in_use_has_a_remedy(client, root):
    with pytest.raises(ConfigError, match="cannot listen") as refused:
        run_vote.serve_vote(open_session(root), port=int(client.host.rpartition(":")[2]), on_start=print)
    assert refused.value.where == "--port"


def test_the_server_loads_no_model_library():
    code = (
        "import sys, lorakit.evaluation.vote.run_vote\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'open_clip', 'timm'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- references and three variants -------------------------------------------------------------------------


def test_reference_images_are_shown_on_request(tmp_path):
    root, photos = tmp_path / "eval", tmp_path / "photos"
    evaluation = make_evaluation(root, prompts=2)
    for number in range(3):
        storage.save_image(photos / f"{number}.png", Image.new("RGB", (20, 20), (number, 0, 0)))
    evaluation.train_images = "../photos"
    storage.write_json(root / "scores.json", evaluation.to_json())
    with serving(open_session(root)) as client:
        page = client.page()
        addresses = re.findall(r'src="(reference/\d+)"', page.text)
        assert len(addresses) == 3  # those of eight that exist
        assert all(client.request(address).status == 200 for address in addresses)
        assert client.request("reference/3").status == 404
    assert "<details" in page.text


def test_three_variants_are_compared_in_all_pairs(tmp_path):
    make_evaluation(tmp_path, prompts=6, truths=(Truth(1, 0.5, 1.0), Truth(2, 0.5, 1.0), Truth(3, 0.5, 1.0)))
    with serving(open_session(tmp_path, "1", "2", "3")) as client:
        for _ in range(9):
            client.vote("left")
        result = client.request("result")
    assert len({vote.pair for vote in VoteFile(tmp_path).read().votes}) == 3
    assert result.text.count("open after") == 3
