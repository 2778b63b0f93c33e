"""What the tests of data share: the cuts of the corpus of tones, and a tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
from lhotse import CutSet

from omnisparse.data.corpora import load_manifest
from omnisparse.data.tokenizer import Tokenizer

WORDS = ("open", "the", "door", "close", "window", "light", "seven", "nine")


@pytest.fixture(scope="session")
def cuts(manifest: Path) -> CutSet:
    return load_manifest(manifest)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.train([" ".join(WORDS)] * 3, 40, tmp_path_factory.mktemp("tokenizer"))
