"""`push`: a run's adapter on a hub, as bytes that plain PEFT loads; what is refused; and no token in any text."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
from command_line import Cli
from hub_server import TOKEN, HubServer, Repo
from huggingface_hub import HfApi, constants
from peft import PeftModel
from transformers import AutoModel

import ortholora
from ortholora.runs.secrets import without_secrets

ADAPTER = ["README.md", "adapter_config.json", "adapter_model.safetensors", "heads.safetensors", "ortholora.json"]


@pytest.fixture(autouse=True)
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, no token of the machine, and the large files as plain HTTP."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "stored_tokens"))
    monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(tmp_path / "harnesses"), raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nobody listens


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub, and a user who is logged in to it."""
    with HubServer() as server:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield server
    huggingface_hub.close_session()


def test_the_adapter_is_loaded_by_plain_peft(cli: Cli, trained: Path, hub: HubServer, home: Path) -> None:
    shown = cli.ok("push", trained, "me/adapter")
    assert "to me/adapter: " in shown
    files = hub.repos["me/adapter"].branches["main"]
    assert sorted(files) == ADAPTER
    assert files == {name: (trained / name).read_bytes() for name in ADAPTER}
    assert set(hub.blobs.values()) == {files[name] for name in files if name.endswith(".safetensors")}
    assert hub.repos["me/adapter"].messages == [f"Upload adapter with ortholora {ortholora.__version__}"]
    without = {path.partition("/storage/")[1] or path for _, path, token in hub.requests if token != TOKEN}
    assert without == {"/storage/"}  # somebody else's

    folder = home / "loaded"
    for name in files:
        HfApi(endpoint=hub.url).hf_hub_download("me/adapter", name, local_dir=folder)
    bare = AutoModel.from_pretrained(home / "backbone", add_pooling_layer=False)
    plain = PeftModel.from_pretrained(bare, folder).eval()
    run, there = ortholora.load(trained, "cpu"), ortholora.load(folder, "cpu")
    batch = run.tokenizer("the goal was fine", return_tensors="pt")
    with torch.no_grad():
        ours = run.model.peft_model(**batch).last_hidden_state
        torch.testing.assert_close(plain(**batch).last_hidden_state, ours)
        with plain.disable_adapter():  # so that the comparison can fail
            assert not torch.allclose(plain(**batch).last_hidden_state, ours)
    assert there.predict("topic", "the goal") == run.predict("topic", "the goal")


def test_what_users_of_the_hubs_own_command_expect(cli: Cli, trained: Path, hub: HubServer) -> None:
    """A private repository, a branch, a message; a name alone; and a second push on top of the first."""
    cli.ok("push", trained, "adapter", "--private", "--revision", "v1/a", "--commit-message", "First")
    repo = hub.repos["me/adapter"]
    assert repo.private
    assert repo.messages == ["First"]
    assert sorted(repo.branches["v1/a"]) == ADAPTER
    assert repo.branches["main"] == {}
    repo.branches["v1/a"] |= {"README.md": b"old", "theirs.txt": b"x"}
    cli.ok("push", trained, "adapter", "--private", "--revision", "v1/a")
    assert repo.branches["v1/a"]["README.md"] == (trained / "README.md").read_bytes()
    assert sorted(repo.branches["v1/a"]) == [*ADAPTER, "theirs.txt"]
    assert len([path for method, path, _ in hub.requests if method == "PUT"]) == 2  # the weights went once


def test_the_token_of_a_login(cli: Cli, run: Path, hub: HubServer, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    (home / "token").write_text(TOKEN + "\n", encoding="utf-8")
    cli.ok("push", run, "me/adapter")
    assert hub.requests[0][2] == TOKEN


def test_an_exported_model(cli: Cli, trained: Path, hub: HubServer, home: Path) -> None:
    cli.ok("export", trained, "--out", "model")
    (home / "model" / "notes.py").write_text("mine", encoding="utf-8")
    cli.ok("push", "model", "me/model")
    there = {path.name: path.read_bytes() for path in (home / "model").iterdir() if path.name != "notes.py"}
    assert {"config.json", "model.safetensors", "heads.json", "heads.safetensors", "tokenizer.json"} < set(there)
    assert hub.repos["me/model"].branches["main"] == there
    assert hub.repos["me/model"].messages[0].startswith("Upload model")
    (home / "model" / "model.safetensors").write_bytes(there["model.safetensors"][:-1])
    assert "model.safetensors is damaged" in cli.complaint("push", "model", "me/other")
    assert set(hub.repos) == {"me/model"}


def test_a_backbone_that_others_do_not_have(cli: Cli, run: Path, hub: HubServer) -> None:
    assert "Note: ortholora.json and adapter_config.json name the backbone" in cli.ok("push", run, "me/a")
    for name, key in (("ortholora.json", "backbone"), ("adapter_config.json", "base_model_name_or_path")):
        content = json.loads((run / name).read_text(encoding="utf-8"))
        (run / name).write_text(json.dumps({**content, key: "bert/tiny"}), encoding="utf-8")
    assert "Note" not in cli.ok("push", run, "me/a")


class TestRefusedBeforeTheHubIsAsked:
    @pytest.fixture(autouse=True)
    def nothing_was_asked(self, hub: HubServer) -> Iterator[None]:
        yield
        assert hub.requests == []

    def test_folders_that_are_no_run(self, cli: Cli, home: Path) -> None:
        assert "no such folder" in cli.complaint("push", "nowhere", "me/a")
        assert "a file" in cli.complaint("push", "tiny.yaml", "me/a")
        assert "is no Ortho-LoRA run" in cli.complaint("push", home, "me/a")
        assert "is no Ortho-LoRA run" in cli.complaint("push", "backbone", "me/a")

    def test_an_unfinished_run(self, cli: Cli, run: Path, home: Path) -> None:
        (run / "result.json").unlink()
        assert "not finished" in cli.complaint("push", run, "me/a")
        for name in ADAPTER:
            (run / name).unlink()
        assert "not finished" in cli.complaint("push", run, "me/a")

    @pytest.mark.parametrize("name", ADAPTER)
    def test_damaged_and_missing_files(self, cli: Cli, run: Path, name: str) -> None:
        (run / name).write_bytes((run / name).read_bytes()[:50] + b"\xff")
        assert name in cli.complaint("push", run, "me/a")
        (run / name).unlink()
        assert name in cli.complaint("push", run, "me/a")

    @pytest.mark.parametrize("name", ["me/a/b", "me/a b", "https://hub/me/a", "../a", "me/a.git", "", "-x/"])
    def test_names_that_are_none(self, cli: Cli, trained: Path, name: str) -> None:
        assert "is no name of a repository" in cli.complaint("push", trained, "--", name)

    def test_empty_words(self, cli: Cli, trained: Path) -> None:
        assert "--revision is empty" in cli.complaint("push", trained, "me/a", "--revision", " ")
        assert "--commit-message is empty" in cli.complaint("push", trained, "me/a", "--commit-message", "")

    def test_no_token(self, cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("HF_TOKEN")
        assert "There is no token" in cli.complaint("push", trained, "me/a")

    def test_a_token_that_the_http_client_would_show(
        self, cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_TOKEN", "hf_short\x01secret")
        message = cli.complaint("push", trained, "me/a")
        assert "damaged" in message
        assert "secret" not in message


def test_no_network(cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    message = cli.complaint("push", trained, "me/a")
    assert "could not be pushed to me/a" in message
    assert "onnect" in message
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "offline mode" in cli.complaint("push", trained, "me/a")


def test_what_the_hub_refuses(cli: Cli, trained: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    message = cli.complaint("push", trained, "others/a")
    assert "a token with the right to write there" in message
    assert "403: You don't have the rights" in message
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody")
    message = cli.complaint("push", trained, "me/a")
    assert "a token that the hub knows" in message
    assert "401" in message
    assert "hf_of_somebody" not in message
    assert hub.repos == {}


def test_private_where_it_is_public_already(cli: Cli, trained: Path, hub: HubServer) -> None:
    """The hub's library would say nothing, and show the files to everybody."""
    hub.repos["me/open"] = Repo()
    assert "me/open is public" in cli.complaint("push", trained, "me/open", "--private")
    assert hub.repos["me/open"].branches == {"main": {}}


def test_a_failed_upload_commits_nothing(cli: Cli, trained: Path, hub: HubServer) -> None:
    hub.storage = 403
    message = cli.complaint("push", trained, "me/a")
    assert "403: " in message
    assert "?***" in message  # the signature, with which anybody could upload
    assert hub.repos["me/a"].branches == {"main": {}}
    assert hub.repos["me/a"].messages == []


@pytest.mark.parametrize("status", [400, 401, 403, 404, 418])
def test_a_hub_that_says_the_token_aloud(cli: Cli, trained: Path, hub: HubServer, status: int) -> None:
    hub.answer = status, f"no: {TOKEN}, hf_ofSomebodyElse0123456789, http://me:pass@hub/x?sig=1"
    message = cli.complaint("push", trained, "me/a")
    assert f"{status}: no: ***, ***, http://***@hub/x?***" in message


def test_a_token_in_the_place_of_a_name(cli: Cli, trained: Path, hub: HubServer) -> None:
    message = cli.complaint("push", trained, f"https://me:{TOKEN}@hub/a")
    assert "is no name of a repository" in message
    assert TOKEN not in message


def test_secrets() -> None:
    """Any token that is in use, whatever it looks like; and none where the text has none."""
    assert without_secrets("a b/c d%2Fe f", "b/c") == "a *** d%2Fe f"
    assert without_secrets("a b%2Fc", "b/c") == "a ***"
    assert without_secrets("hf_hub and api_org are words; why? https://hub/a", None) == (
        "hf_hub and api_org are words; why? https://hub/a"
    )
    assert without_secrets("(api_org_abcdefghijklmnop0)", None) == "(***)"


def test_nothing_is_left_in_the_folder(cli: Cli, run: Path, hub: HubServer) -> None:
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    cli.ok("push", run, "me/a")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
