"""README and ``docs/``: pages made from the code are up to date, and what they say is so."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from click.testing import CliRunner

from omnisparse.cli.main import verbs
from omnisparse.config import RunConfig, config_from_dict, config_to_dict
from omnisparse.data.corpora import load_manifest
from omnisparse.methods import KINDS
from omnisparse.models import LasConfig, TransducerConfig
from omnisparse.training.tracking import flatten

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
BY_HAND = [page for page in PAGES if page.name != "keys.md" and page.parent.name != "verbs"]


@pytest.fixture(scope="module")
def maker() -> Any:
    spec = importlib.util.spec_from_file_location("make_docs", ROOT / "tools" / "make_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_made_pages_are_up_to_date(maker: Any) -> None:
    made = maker.pages()
    stale = [name for name, text in made.items() if not _is(DOCS / name, text)]
    gone = [path.name for path in (DOCS / "verbs").iterdir() if f"verbs/{path.name}" not in made]
    assert stale + gone == [], "run `make docs`"


def _is(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


def test_the_key_reference_is_complete() -> None:
    listed = set(re.findall(r"^\| `([\w.]+)` \|", (DOCS / "keys.md").read_text(), re.MULTILINE))
    known = set(flatten(config_to_dict(RunConfig())))
    for model in (LasConfig, TransducerConfig):
        config = config_from_dict({"model": {"kind": model().kind}})
        known |= set(flatten(config_to_dict(config)))
    teacher = {"teacher": "runs/a"}
    for kind in KINDS:
        choices: dict[str, Any] = {"kind": kind}
        choices |= teacher if kind == "distillation" else {}
        choices |= {"distillation": teacher} if kind == "gradual_pruning" else {}
        known |= set(flatten(config_to_dict(config_from_dict({"method": choices}))))
    known |= {f"corpus.synthetic.{key}" for key in ("preset", "hours", "text", "seed", "snr_db")}
    assert len(known) > 100
    assert known - listed == set()
    # What is listed beyond them are sections.
    assert all(any(key.startswith(f"{name}.") for key in known) for name in listed - known)


def test_the_glossary_explains_thirty_words() -> None:
    text = (DOCS / "glossary.md").read_text(encoding="utf-8")
    words = re.findall(r"^\*\*([^*]+)\*\*.*: \S", text, flags=re.MULTILINE)
    assert len(words) >= 30
    assert words == sorted(words, key=str.lower)


def test_readme_is_short_and_explains_its_tables() -> None:
    lines = README.splitlines()
    assert len(lines) < 250
    assert "docs/demo.png" in README
    for number, line in enumerate(lines):
        if line.startswith("|---"):
            before = [text for text in lines[: number - 1] if text.strip()]
            assert not before[-1].startswith(("#", "|", "```")), (
                f"no sentence before the table {lines[number - 1]}"
            )


@pytest.mark.parametrize("page", BY_HAND, ids=lambda page: str(page.relative_to(ROOT)))
def test_brackets_are_quoted(page: Path) -> None:
    """zsh refuses a word with brackets that matches no file."""
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        for line in block.splitlines():
            bare = re.sub(r"\"[^\"]*\"|'[^']*'", "", line.split("  #")[0])
            assert not re.search(r"[\[\]{}]", bare), line


CONFIGS = sorted((ROOT / "recipes").rglob("*.yaml"))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: str(path.name))
def test_brackets_are_quoted_in_the_commands_of_recipes(config: Path) -> None:
    for line in config.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and "=" in line:
            bare = re.sub(r"\"[^\"]*\"", "", line)
            assert not re.search(r"=[\[{]", bare), line


@pytest.fixture(scope="module")
def ten_commands() -> list[str]:
    (block,) = re.findall(r"<!-- tested: ten commands -->\n```bash\n(.*?)```", README, re.DOTALL)
    return str(block).splitlines()


@pytest.fixture
def recordings(tmp_path: Path, speech: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a few recordings in a LibriSpeech tree, and one to recognise."""
    # Short ones: the configuration of the ten commands makes thirty passes over three speeds.
    cuts = sorted(load_manifest(speech / "train.jsonl"), key=lambda cut: cut.duration)[:10]
    voices = sorted({cut.supervisions[0].speaker for cut in cuts})
    for cut in cuts:
        voice = str(voices.index(cut.supervisions[0].speaker))
        chapter = tmp_path / "recordings" / "mine" / voice / "1"
        chapter.mkdir(parents=True, exist_ok=True)
        shutil.copy(cut.recording.sources[0].source, chapter / f"{voice}-1-{cut.id}.wav")
        with (chapter / f"{voice}-1.trans.txt").open("a") as file:
            file.write(f"{voice}-1-{cut.id} {cut.supervisions[0].text}\n")
    samples, rate = soundfile.read(cuts[0].recording.sources[0].source)
    soundfile.write(tmp_path / "hello.wav", samples, rate)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a tiny net on a busy machine waits for its threads
    yield tmp_path
    torch.set_num_threads(threads)


def test_the_ten_commands_run_as_they_stand(recordings: Path, ten_commands: list[str]) -> None:
    assert len(ten_commands) == 10
    for line in ten_commands:
        program, *words = shlex.split(line)
        assert program == "omnisparse"
        done = CliRunner().invoke(verbs, words)
        assert done.exit_code == 0, (line, done.stderr[-2000:])
    # What they promise is there.
    for name in ("data/mine/test.jsonl.gz", "runs/latest/extracted/25pct", "errors.txt", "phone"):
        assert (recordings / name).exists(), name
    small = recordings / "runs/latest/extracted/1MB-int8"
    assert sum(path.stat().st_size for path in small.iterdir() if path.suffix != ".md") <= 1e6
    whole, part = (recordings / name for name in ("all.omni", "small.omni"))
    assert whole.read_bytes().startswith(part.read_bytes())
    assert part.stat().st_size < 0.5 * whole.stat().st_size
