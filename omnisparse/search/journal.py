"""A file of all evaluations, written line by line, so that a killed search loses nothing.

A search is a function of its seed and of the results of its evaluations. So only these results are
saved. A search that is started again asks the same questions, and the journal gives the answers
that it already holds.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from omnisparse.durable import sync_path
from omnisparse.sparsity.space import SubnetSpec

_FORMAT = 2


class Journal:
    """Answers by question, in a file of JSON lines; lines are only appended.

    Each answer is on the disk before :meth:`put` returns. An incomplete last line, left by a killed
    process, is dropped. Other circumstances give a journal of another name.

    Args:
        folder: Folder of journals; made if absent.
        circumstances: Everything that the answers depend on beside the question (weights, data,
            measure), as JSON-serialisable values.

    Attributes:
        seconds: Time that all answers took, over all processes that added one.

    Raises:
        OSError: If the file cannot be written.
    """

    def __init__(self, folder: Path, circumstances: Mapping[str, Any]) -> None:
        text = json.dumps({"format": _FORMAT, "circumstances": circumstances}, sort_keys=True)
        self.name = hashlib.sha256(text.encode()).hexdigest()[:12]
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"evaluations-{self.name}.jsonl"
        self.seconds = 0.0
        self._answers: dict[str, Any] = {}
        if not self._read(text):
            with self.path.open("w", encoding="utf-8") as file:
                file.write(text + "\n")
            sync_path(self.path)
            sync_path(folder)

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, question: str) -> Any | None:
        """The stored answer, or None."""
        return self._answers.get(question)

    def ask(self, question: str, measure: Callable[[], Any]) -> Any:
        """The stored answer, or else the result of ``measure``, which is stored with its time.

        Raises:
            OSError: As :meth:`put`.
        """
        known = self.get(question)
        if known is None:
            started = time.perf_counter()
            known = measure()
            self.put(question, known, seconds=time.perf_counter() - started)
        return known

    def put(self, question: str, answer: Any, *, seconds: float = 0.0) -> None:
        """Store a JSON-serialisable answer (floats are restored exactly).

        Args:
            question: The question.
            answer: Its answer.
            seconds: Time that it took.

        Raises:
            OSError: If it cannot be written; the journal is unchanged then.
        """
        record = {"question": question, "answer": answer, "seconds": seconds}
        rest = (json.dumps(record) + "\n").encode()
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            whole = os.fstat(descriptor).st_size
            try:
                while rest:  # on a full disk, a part may be written before the error
                    rest = rest[os.write(descriptor, rest) :]
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, whole)  # otherwise later answers could not be read
                raise
        finally:
            os.close(descriptor)
        self._answers[question] = answer
        self.seconds += seconds

    def _read(self, header: str) -> bool:
        """Load the file's answers; False if it holds nothing usable."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return False
        lines = content.split(b"\n")
        if lines[0] != header.encode() or len(lines) == 1:
            return False  # killed before the header was complete
        whole = len(lines[0]) + 1
        for line in lines[1:]:
            try:
                record = json.loads(line)
                seconds = float(record["seconds"])
                self._answers[record["question"]] = record["answer"]
                self.seconds += seconds
            except (ValueError, KeyError, TypeError):
                break
            whole += len(line) + 1
        if whole < len(content):
            os.truncate(self.path, whole)
        elif whole > len(content):  # the last line lacks only its line break
            with self.path.open("ab") as file:
                file.write(b"\n")
        return True


def key_of(spec: SubnetSpec) -> str:
    """A name of a spec: equal specs have the same name in every process."""
    text = json.dumps(sorted(spec.sparsity.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:24]
