"""What was measured, kept line by line, so that a search killed at any moment loses nothing.

A search is a function of its seed and of what its evaluations say. So nothing of its state is
saved but those: started again, it asks the same questions, and the journal answers the old ones.
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
    """Answers by question, in a file of JSON lines that is only ever appended to.

    Each answer is on the disk before :meth:`put` returns. A last line that a kill cut short is
    dropped; the journal of other circumstances has another name.

    Args:
        folder: Where journals are kept; made if absent.
        circumstances: All that the answers depend on beside the question (weights, data, what is
            measured), as JSON can hold it.

    Attributes:
        seconds: What all answers took, in every process that put one.

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
        """The answer that was put, or None."""
        return self._answers.get(question)

    def ask(self, question: str, measure: Callable[[], Any]) -> Any:
        """The answer that was put, or what ``measure`` says, which is put with its time.

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
        """Keep an answer, as JSON can hold it (floats come back bit by bit).

        Args:
            question: What was asked.
            answer: What came of it.
            seconds: What it took.

        Raises:
            OSError: If the disk does not take it; the journal is as it was then.
        """
        record = {"question": question, "answer": answer, "seconds": seconds}
        rest = (json.dumps(record) + "\n").encode()
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            whole = os.fstat(descriptor).st_size
            try:
                while rest:  # a full disk takes a part first, and refuses after
                    rest = rest[os.write(descriptor, rest) :]
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, whole)  # or no later answer could be read
                raise
        finally:
            os.close(descriptor)
        self._answers[question] = answer
        self.seconds += seconds

    def _read(self, header: str) -> bool:
        """Take over what is there; False if there is nothing of use."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return False
        lines = content.split(b"\n")
        if lines[0] != header.encode() or len(lines) == 1:
            return False  # killed before the header was whole
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
        elif whole > len(content):  # the last line is whole but for its end
            with self.path.open("ab") as file:
                file.write(b"\n")
        return True


def key_of(spec: SubnetSpec) -> str:
    """A name of a spec that equal specs share, in every process."""
    text = json.dumps(sorted(spec.sparsity.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:24]
