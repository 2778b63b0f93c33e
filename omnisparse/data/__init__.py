"""Room: data. From corpora of the world to batches; knows nothing of models, sparsity or training.

`corpora` (manifests, import) -> `feature_store` (frames on disk) -> `filtering` -> `batching`.
"""
