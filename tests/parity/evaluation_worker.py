"""One of two processes that recognise a dev set together: RUN MANIFEST OUT [fail]."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from omnisparse.data.corpora import load_manifest
from omnisparse.errors import DataError
from omnisparse.evaluation.evaluate import Decoder, evaluate
from omnisparse.runs.directory import load_model
from omnisparse.training.launch import make_accelerator
from omnisparse.training.sharing import shared_by

if __name__ == "__main__":
    run, manifest, out = map(Path, sys.argv[1:4])
    accelerator = make_accelerator()
    loaded = load_model(run)
    cuts = load_manifest(manifest, sampling_rate=loaded.extractor.sampling_rate)
    decoder = Decoder(loaded.model, loaded.extractor, loaded.tokenizer, batch_seconds=8.0)
    spread = shared_by(accelerator)
    own: list[int] = []
    real = decoder.run

    def counted(cuts: object, task: tuple[int, ...]) -> list[tuple[int, str]]:
        own.append(len(task))
        return real(cuts, task)  # type: ignore[arg-type]

    decoder.run = counted  # type: ignore[method-assign, assignment]
    result = evaluate(decoder, cuts, spread=spread)

    def fail(task: int) -> int:
        if accelerator.process_index == 1:
            raise DataError("no audio")
        return task

    try:
        spread([1, 2, 3], fail)
        message = "none"
    except DataError as error:
        message = str(error)
    row = {
        "wer": result.wer,
        "texts": [one.hypothesis for one in result.hypotheses],
        "own": sum(own),
        "failed": message,
    }
    (out / f"{accelerator.process_index}.json").write_text(json.dumps(row))
