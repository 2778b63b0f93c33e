"""Whatever a text file that someone sends may hold: a typed error or the right result, in time.

Artifacts and nested files are fuzzed in ``tests/unit/artifact/test_fuzz.py``, the files of a report
in ``tests/unit/pipeline/test_report.py``.
"""

from __future__ import annotations

import copy
import json
import resource
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from omnisparse.config import load_config
from omnisparse.config.yaml_core import read_yaml
from omnisparse.data.corpora import load_manifest
from omnisparse.errors import DataError, OmnisparseError
from omnisparse.runs.directory import read_description
from omnisparse.runs.record import read_record
from omnisparse.search.front import read_front
from omnisparse.sparsity.decomposition import ranks_from_json
from omnisparse.sparsity.space import SubnetSpec
from omnisparse.sweeps.file import SweepError, load_sweep
from omnisparse.training.checkpoint import load_checkpoint, read_state

OLD = Path(__file__).parents[1] / "fixtures" / "f1feb7c" / "run"


def read_sweep(path: Path) -> None:
    sweep = load_sweep(path)
    if sweep.method == "bayes":
        sweep.next_point([], number=0, seed=0)
        return
    for point in sweep.points(count=3):
        sweep.command_line(point, {})


def read_a_manifest(path: Path) -> None:
    for cut in load_manifest(path):
        assert cut.duration > 0


@dataclass(frozen=True)
class Reader:
    """How a kind of file is read.

    Attributes:
        name: Of the file, below a folder.
        good: One that is read without an error, as a document.
        read: Reads the file.
        form: ``json``, ``yaml`` or ``lines``.
    """

    name: str
    good: Any
    read: Callable[[Path], Any]
    form: str = "json"

    def text(self, document: Any) -> str:
        """What stands in the file."""
        if self.form == "yaml":
            return str(yaml.safe_dump(document, allow_unicode=True))
        if self.form == "lines":
            lines = document if isinstance(document, list) else [document]
            return "".join(json.dumps(line) + "\n" for line in lines)
        return json.dumps(document)


SPEC = {"sparsity": {"encoder.layers.0.weight_ih_l0": 0.5}}
READERS = {
    "sweep": Reader(
        "sweep.yaml",
        {
            "program": "train.py", "method": "random", "run_cap": 2,
            "metric": {"name": "loss", "goal": "minimize"},
            "parameters": {
                "a": {"values": [1, "x"], "probabilities": [1, 2]}, "b": {"min": 1, "max": 3},
                "c": {"distribution": "q_uniform", "min": 0, "max": 1, "q": 0.5},
                "d": {"distribution": "log_uniform_values", "min": 1e-3, "max": 1},
            },
            "command": ["${interpreter}", "${program}", "${args}"],
        },
        read_sweep,
        "yaml",
    ),
    "config": Reader(
        "config.yaml",
        {"name": "x", "model": {"kind": "las", "encoder_layers": 2}, "seed": 3,
         "method": {"kind": "sandwich", "min_size": "40%", "levels": ["50%"]},
         "data": {"features": {"stack": 3}, "augmentation": {"speed_factors": [0.9, 1.0]}},
         "training": {"betas": [0.9, 0.98], "max_steps": 5}},
        lambda path: load_config(path, []),
        "yaml",
    ),
    "front": Reader(
        "front.json",
        {"format": 2, "identity": "5-00000000", "journal": "j", "front": [
            {"size": "50%", "requested": 10, "nonzero": 9, "wer": 5.0, "wer_low": 4.0,
             "wer_high": None, "score": 1.0, "uniform_wer": 6.0, "uniform_score": 1.0,
             "evaluations": 3, "dominated": False, "spec": SPEC},
        ]},
        read_front,
    ),
    "spec": Reader("spec.json", SPEC, lambda path: SubnetSpec.from_json(path.read_text())),
    "ranks": Reader(
        "ranks.json", {"ranks": {"a": 3, "b": 1}}, lambda path: ranks_from_json(path.read_text())
    ),
    "description": Reader(
        "model.json",
        json.loads((OLD / "model.json").read_text()),
        lambda path: read_description(path.parent),
    ),
    "manifest": Reader(
        "train.jsonl",
        [{"audio_filepath": "a.wav", "duration": 0.5, "text": "open the door", "offset": 0.0,
          "speaker": "s", "id": "u1"}],
        read_a_manifest,
        "lines",
    ),
}  # fmt: skip

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
    | st.sampled_from([10**400, -1, 2**63, 1e308, "1e999", "\x00", "../../etc", "${envvar:X}"])
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


def places(document: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value of a document."""
    found = [way]
    if isinstance(document, dict):
        for key, value in document.items():
            found += places(value, (*way, key))
    elif isinstance(document, list):
        for index, value in enumerate(document):
            found += places(value, (*way, index))
    return found


def changed(document: Any, way: tuple[Any, ...], value: Any, *, removed: bool) -> Any:
    """A copy with another value at a place, or without it."""
    if not way:
        return value
    document = copy.deepcopy(document)
    parent = document
    for key in way[:-1]:
        parent = parent[key]
    if removed:
        del parent[way[-1]]
    else:
        parent[way[-1]] = value
    return document


@st.composite
def files(draw: st.DrawFn, reader: Reader) -> bytes:
    """A good file with some of its values, or some of its bytes, changed."""
    document = reader.good
    for _ in range(draw(st.integers(1, 3))):
        way = draw(st.sampled_from(places(document)))
        document = changed(document, way, draw(VALUES), removed=bool(way) and draw(st.booleans()))
    try:
        content = reader.text(document).encode("utf-8", "surrogatepass")
    except (yaml.YAMLError, ValueError):  # what its writer refuses
        content = reader.text(reader.good).encode()
    how = draw(st.sampled_from(["as it is", "cut", "flipped", "noise"]))
    if how == "cut":
        content = content[: draw(st.integers(0, len(content)))]
    elif how == "flipped" and content:
        changed_bytes = bytearray(content)
        for _ in range(draw(st.integers(1, 4))):
            changed_bytes[draw(st.integers(0, len(content) - 1))] ^= draw(st.integers(1, 255))
        content = bytes(changed_bytes)
    elif how == "noise":
        content = draw(st.binary(max_size=60))
    return content


def check(reader: Reader, folder: Path, content: bytes) -> None:
    path = folder / reader.name
    path.write_bytes(content)
    try:
        reader.read(path)
    except (OmnisparseError, ValueError) as error:  # what the command line shows as one line
        said = str(error)
    else:
        return
    assert 0 < len(said) < 20_000


QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]


@pytest.fixture
def folder(tmp_path: Path, manifest: Path) -> Path:
    shutil.copy(next(manifest.parent.glob("audio/*.wav")), tmp_path / "a.wav")
    return tmp_path


@pytest.mark.parametrize("name", READERS)
def test_good_files_are_read(folder: Path, name: str) -> None:
    reader = READERS[name]
    (folder / reader.name).write_text(reader.text(reader.good))
    reader.read(folder / reader.name)


def fuzz(name: str, folder: Path, number: int) -> None:
    # Each run seeks new files; one that fails is shown as it is. Time is the processor's.
    @settings(
        max_examples=number, suppress_health_check=QUIET, derandomize=False,
        phases=[Phase.generate],
    )  # fmt: skip
    @given(content=files(READERS[name]))
    def run(content: bytes) -> None:
        before = time.process_time()
        check(READERS[name], folder, content)
        assert time.process_time() - before < 5

    run()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert peak < 8_000_000, "kilobytes"


@pytest.mark.parametrize("name", READERS)
def test_a_few_damaged_files(folder: Path, name: str) -> None:
    fuzz(name, folder, 60)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_ten_thousand_damaged_files(folder: Path, name: str) -> None:
    fuzz(name, folder, 10_000)


@settings(max_examples=60, deadline=5000, suppress_health_check=QUIET)
@given(
    flips=st.lists(st.tuples(st.integers(0, 10**9), st.integers(1, 255)), min_size=1),
    data=st.data(),
)
def test_a_damaged_checkpoint_is_never_read(tmp_path: Path, flips: Any, data: Any) -> None:
    (source,) = (OLD / "checkpoints").iterdir()
    target = tmp_path / source.name
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    file = data.draw(st.sampled_from(sorted(path.name for path in target.glob("*.safetensors"))))
    content = bytearray((target / file).read_bytes())
    for place, bits in flips:
        content[place % len(content)] ^= bits
    if bytes(content) == (target / file).read_bytes():
        return
    (target / file).write_bytes(content)
    with pytest.raises(OmnisparseError, match=file):
        load_checkpoint(target)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"format": 1, "step": ' + "9" * 5000 + "}", "{}"])
def test_a_state_that_is_none(tmp_path: Path, text: str) -> None:
    folder = tmp_path / "checkpoints" / "step-00000001"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(text)
    for read in (read_state, read_record):
        with pytest.raises(OmnisparseError):
            read(folder)


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{one}: &{one} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, one in zip("abcdefghi", "bcdefghij", strict=True)
)


def test_yaml_that_grows_when_it_is_read_is_refused_at_once(tmp_path: Path) -> None:
    for text, said in (
        (LAUGHS, "more than 200,000 values"),
        ("a: &a [*a]", "one that contains itself"),
        ("[" * 3000, "deeply|levels"),
        ("- " * 100 + "x", "levels"),
        ("a" * 5_000_000, "characters"),
        ("!!int x", "cannot be read"),
        ("!!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("9" * 5000, "cannot be read"),
    ):
        with pytest.raises(yaml.YAMLError, match=said):
            read_yaml(text)
        (tmp_path / "file.yaml").write_text(text)
        with pytest.raises((OmnisparseError, ValueError)):
            load_sweep(tmp_path / "file.yaml")
    assert read_yaml("a: &a {b: 1}\nc: *a\nd: {<<: *a, e: 2}") == {
        "a": {"b": 1}, "c": {"b": 1}, "d": {"b": 1, "e": 2},
    }  # fmt: skip


def test_a_sweep_of_endless_points_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    parameters = {f"p{n}": {"values": list(range(10))} for n in range(12)}
    document = {"program": "x", "method": "grid", "parameters": parameters}
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(SweepError, match=r"1,000,000,000,000 points; at most 100,000"):
        load_sweep(path).points()
    path.write_text(yaml.safe_dump({**document, "method": "random", "run_cap": 10**12}))
    with pytest.raises(SweepError, match="legal: up to 100,000"):
        load_sweep(path).points()


def test_a_line_without_an_end_is_refused(tmp_path: Path) -> None:
    import gzip

    path = tmp_path / "train.jsonl.gz"
    with gzip.open(path, "wb") as file:
        for _ in range(20):
            file.write(b" " * 1_000_000)
    assert path.stat().st_size < 100_000
    with pytest.raises(DataError, match="line 1 has no end"):
        load_manifest(path)
