"""What may stand for a model on the command line."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import errors

from prosparse.errors import MachineError, MissingFileError, UnsupportedError, UserError
from prosparse.weights import resolve_model


@pytest.fixture
def hub(monkeypatch):
    """The hub's download, replaced: it records its calls, and raises or returns what the test says."""
    calls: list[tuple[str, dict]] = []

    def download(model_id, **options):
        calls.append((model_id, options))
        if isinstance(download.answer, Exception):
            raise download.answer
        return download.answer

    download.calls = calls
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return download


def test_folder_is_itself_even_if_it_looks_like_an_id(tmp_path, monkeypatch, hub):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve_model("owner/name").resolve() == tmp_path / "owner" / "name"
    assert hub.calls == []


def test_file_is_no_model(tmp_path):
    (tmp_path / "model.gguf").touch()
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UnsupportedError, match="model.gguf: a GGUF file is run as it is"):
        resolve_model(tmp_path / "model.gguf")
    assert resolve_model(tmp_path / "model.gguf", gguf=True) == tmp_path / "model.gguf"
    with pytest.raises(UserError, match="is a file; give the folder"):
        resolve_model(tmp_path / "model.safetensors")


def test_folder_that_cannot_be_read(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)  # the tests may run as root, who may read everything
    with pytest.raises(UserError, match="cannot be read: Permission denied"):
        resolve_model(tmp_path)
    with pytest.raises(UserError, match="cannot be read: File name too long"):
        resolve_model("x" * 5000)


@pytest.mark.parametrize("model", ["nowhere", "./owner/name", "/no/where", "a/b/c", "owner/", "own er/name", "../x"])
def test_neither_folder_nor_id(model, hub):
    with pytest.raises(MissingFileError, match="no such folder, and no Hugging Face id either"):
        resolve_model(model)
    assert hub.calls == []


def test_id_is_downloaded_without_code_and_pickles(tmp_path, hub):
    hub.answer = str(tmp_path)
    (tmp_path / "model.safetensors").touch()
    assert resolve_model("owner/name") == tmp_path
    assert resolve_model("owner/name", pickled=True) == tmp_path
    first, second = (set(options["allow_patterns"]) for _, options in hub.calls)
    assert "*.safetensors" in first and "*.py" not in second
    assert second - first == {"*.bin", "*.pt", "*.pth"}


def test_id_without_safetensors_names_the_command_that_converts_it(tmp_path, hub):
    hub.answer = str(tmp_path)
    with pytest.raises(UnsupportedError, match="`prosparse convert owner/name -o name-safetensors`"):
        resolve_model("owner/name")
    assert resolve_model("owner/name", pickled=True) == tmp_path


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        (
            errors.LocalEntryNotFoundError("no network"),
            MachineError,
            r"cannot be reached \(no network\).*give its folder",
        ),
        (errors.OfflineModeIsEnabled("offline"), MachineError, r"cannot be reached \(offline\)"),
        (ConnectionError(), MachineError, r"cannot be reached \(ConnectionError\)"),
        (errors.HFValidationError("bad id"), UserError, "is no Hugging Face id: bad id"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_hub_that_does_not_answer(hub, fault, error, message):
    hub.answer = fault
    with pytest.raises(error, match=message):
        resolve_model("owner/name")


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        (errors.GatedRepoError, UserError, "accept a licence"),
        (errors.RepositoryNotFoundError, MissingFileError, "no such model on the Hugging Face Hub"),
    ],
)
def test_hub_that_refuses(hub, kind, error, message):
    hub.answer = kind.__new__(kind)  # its constructor wants the HTTP response
    with pytest.raises(error, match=message):
        resolve_model("owner/name")
