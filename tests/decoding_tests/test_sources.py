"""Sources as people write them: what can only be a path never asks the hub, and the hub's cache comes first."""

import shutil
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from tiny_runs import save_model

from decoding import LM
from decoding.models.defaults import DRAFTER, load_model
from decoding.models.sources import locate

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """What the hub is asked for, in a folder that holds ``runs`` and a file; the cache is empty, no network is used."""
    names = []

    def ask(repo, *args, local_files_only=False, **options):
        if local_files_only:
            raise huggingface_hub.errors.LocalEntryNotFoundError("not there")
        names.append(repo)
        raise ConnectionError("the hub cannot be reached\nfor long")

    (tmp_path / "runs").mkdir()
    (tmp_path / "notes").touch()
    monkeypatch.chdir(tmp_path)
    for name in ("snapshot_download", "hf_hub_download"):
        monkeypatch.setattr(f"decoding.models.sources.{name}", ask)
    monkeypatch.setattr("decoding.models.sources.HfApi.list_repo_files", lambda self, repo: ask(repo))
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("it asked the network"))
    return names


PATHS = [
    "runs/mine",
    "runs/deep/mine",
    "./mine",
    "../mine",
    "~/mine",
    "owner/model.safetensors",
    "model.bin",
    "notes",
    "owner/name/",
]
GGUFS = ["./mine.gguf", "mine.gguf", "runs/deep/mine.gguf", "/no/where/mine.gguf", "owner/mine.gguf"]


@pytest.mark.parametrize("source", [*PATHS, *GGUFS, "C:\\models\\mine", Path("runs/mine")], ids=str)
def test_a_path_that_is_not_there_is_refused_without_the_hub(asked, source):
    """``runs/mine`` looks like a hub id, for which half a minute was waited offline."""
    with pytest.raises(FileNotFoundError, match=r"^no (model folder|GGUF file) at .*; a model is a folder"):
        LM.load(source)
    with pytest.raises(ValueError, match=r"no (model folder|GGUF file) at"):
        load_model("small", source)
    assert not asked


HUB = {
    "gpt2": "gpt2",
    "owner/name": "owner/name",
    "Qwen/Qwen2.5-0.5B": "Qwen/Qwen2.5-0.5B",
    "https://huggingface.co/owner/name": "owner/name",
    "https://huggingface.co/owner/name/tree/main": "owner/name",
    "hf.co/owner/name": "owner/name",
    "owner/name-GGUF/file.gguf": "owner/name-GGUF",
    "owner/name-GGUF/folder/file.gguf": "owner/name-GGUF",
    "https://huggingface.co/owner/name/resolve/main/file.gguf?download=true": "owner/name",
    "https://huggingface.co/owner/name/blob/main/file.gguf": "owner/name",
    "owner/name-GGUF:Q4_K_M": "owner/name-GGUF",
    "hf.co/owner/name-GGUF:Q4_K_M": "owner/name-GGUF",
}


@pytest.mark.parametrize("source", HUB)
def test_what_may_be_on_the_hub_is_asked_for(asked, source):
    with pytest.raises(
        FileNotFoundError, match="not in the hub's cache, and the hub cannot be asked: .*(reached|there)"
    ):
        LM.load(source)
    with pytest.raises(ValueError, match="no small model at .*: no folder is named"):
        load_model("small", source)
    assert asked == [HUB[source]] * 2


def test_other_urls_are_refused(asked):
    with pytest.raises(ValueError, match="https://example.org/m.gguf is not on the hub: download the model"):
        LM.load("https://example.org/m.gguf")
    assert not asked


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RepositoryNotFoundError, "no model on the hub is named owner/name"),
        (GatedRepoError, "accept its terms at"),
    ],
)
def test_what_the_hub_answers_is_said(error, said, asked, monkeypatch):
    def ask(repo, local_files_only=False, **options):
        if local_files_only:
            raise huggingface_hub.errors.LocalEntryNotFoundError("not there")
        raise error.__new__(error)

    monkeypatch.setattr("decoding.models.sources.snapshot_download", ask)
    with pytest.raises(FileNotFoundError, match=said):
        LM.load("owner/name")


def test_a_file_that_a_repository_lacks_is_named(asked, monkeypatch):
    def ask(repo, file, local_files_only=False):
        error = huggingface_hub.errors
        kind = error.LocalEntryNotFoundError if local_files_only else error.RemoteEntryNotFoundError
        raise kind.__new__(kind)

    monkeypatch.setattr("decoding.models.sources.hf_hub_download", ask)
    with pytest.raises(FileNotFoundError, match="owner/name-GGUF on the hub has no file nothing.gguf"):
        LM.load("owner/name-GGUF/nothing.gguf")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return Path(save_model(tmp_path_factory.mktemp("models") / "toy", seed=1, layers=1))


@pytest.fixture
def cache(models, tmp_path, monkeypatch):
    """A cache laid out as the hub's, with a model, another without a slash, one of GGUF files, and half of one."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("it asked the network"))

    def snapshot(repo):
        place = tmp_path / f"models--{repo.replace('/', '--')}"
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text(COMMIT)
        (place / "blobs").mkdir()
        return place / "snapshots" / COMMIT

    for repo in ("owner/name", "toy", "owner/half"):
        shutil.copytree(models, snapshot(repo))
    (snapshot_of(tmp_path, "owner/half") / "model.safetensors").unlink()
    ggufs = snapshot("owner/name-GGUF")
    (ggufs / "more").mkdir(parents=True)
    for file in ("drafter-Q4_K_M.gguf", "drafter-Q8_0.gguf", "more/drafter-IQ4_K_M.gguf"):
        (ggufs / file).symlink_to(DRAFTER)
    return tmp_path


def snapshot_of(cache, repo):
    return cache / f"models--{repo.replace('/', '--')}" / "snapshots" / COMMIT


@pytest.mark.parametrize("source", ["toy", "owner/name", "https://huggingface.co/owner/name", "hf.co/owner/name"])
def test_the_cache_comes_first(cache, source):
    lm = LM.load(source)
    assert lm.name == ("toy" if source == "toy" else "owner/name")
    assert lm.tokenizer("w5 w6")["input_ids"] == [5, 6]
    assert load_model("small", source).identity() == lm.identity()


@pytest.mark.parametrize(
    ("source", "file"),
    [
        ("owner/name-GGUF/drafter-Q8_0.gguf", "drafter-Q8_0.gguf"),
        ("owner/name-GGUF/more/drafter-IQ4_K_M.gguf", "more/drafter-IQ4_K_M.gguf"),
        ("owner/name-GGUF:Q4_K_M", "drafter-Q4_K_M.gguf"),
        ("owner/name-GGUF:q8_0", "drafter-Q8_0.gguf"),
        ("https://huggingface.co/owner/name-GGUF/resolve/main/drafter-Q8_0.gguf?download=true", "drafter-Q8_0.gguf"),
    ],
)
def test_gguf_files_of_the_cache(cache, source, file):
    found = locate(source)
    assert found.name == f"owner/name-GGUF/{file}"
    assert found.folder / found.gguf == snapshot_of(cache, "owner/name-GGUF") / file


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            "owner/name-GGUF",
            "has several models; write owner/name-GGUF/FILE with one of drafter-Q4_K_M.gguf, d",
        ),
        ("owner/name-GGUF:Q5_0", "no single GGUF file of Q5_0; write owner/name-GGUF/FILE with one of drafter-Q4_K_M"),
        ("owner/half", "has no weights"),
        ("owner/nothing", "it is not in the hub's cache"),
    ],
)
def test_what_the_cache_lacks_is_said(cache, source, said):
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        LM.load(source)


def test_the_sentence_of_another_engine_names_the_folder_as_it_was_given(tmp_path, monkeypatch):
    monkeypatch.setattr("decoding.models.llama_cpp.library", lambda: None)
    with pytest.raises(ValueError, match=f"llama.cpp reads .gguf files, not {tmp_path}$"):
        load_model("small", str(tmp_path), backend="llama.cpp")


def test_a_folder_of_gguf_files(tmp_path):
    (tmp_path / "a.gguf").symlink_to(DRAFTER)
    assert locate(tmp_path).gguf == "a.gguf"
    (tmp_path / "b.gguf").symlink_to(DRAFTER)
    with pytest.raises(ValueError, match=r"has several GGUF files; pass one of them: a.gguf, b.gguf"):
        locate(tmp_path)
