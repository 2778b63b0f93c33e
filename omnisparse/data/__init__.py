"""Room: data. From corpora to batches; independent of models, sparsity and training.

`corpora` (manifests, import) -> `feature_store` (frames on disk) -> `filtering` -> `batching`.
"""
