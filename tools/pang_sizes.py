"""Comparison of the parameter counts in Pang et al. 2018 with those of this package's LAS.

    python tools/pang_sizes.py

Builds every shape of tables 1, 2 and 4 (without memory for its weights), counts it, and computes
the widths that really have the printed size: 80 mel bins stacked by 3, no time reduction, 4096 word
pieces, 4 heads, embedding 96, attention as wide as the encoder's output, layer normalisation.
"""

from __future__ import annotations

from omnisparse.methods.widths import count_parameters, parameter_shapes, solve_model
from omnisparse.models import LasConfig
from omnisparse.sparsity.layer_limit import count_layers

INPUT_DIM, VOCAB_SIZE = 240, 4096

SHAPES: tuple[tuple[str, int, int | None, int, int | None, int, int, int], ...] = (
    # name, cells, projection of the encoder; cells, projection of the decoder; layers; printed, M
    ("T1 teacher", 1400, None, 1024, None, 5, 2, 110),
    ("T2 16M", 400, None, 512, None, 5, 2, 16),
    ("T2 16M", 512, 128, 600, None, 5, 2, 16),
    ("T2 16M", 400, 256, 660, None, 5, 2, 16),
    ("T2 32M", 660, None, 660, None, 5, 2, 32),
    ("T2 32M", 1024, 256, 660, None, 5, 2, 32),
    ("T2 32M", 800, 256, 840, None, 5, 2, 32),
    ("T2 57M", 700, None, 1024, None, 5, 2, 57),
    ("T2 57M", 1400, 256, 1024, None, 5, 2, 57),
    ("T2 57M", 1024, 256, 1300, None, 5, 2, 57),
    ("T4 E1/E2", 700, None, 512, None, 5, 2, 29),
    ("T4 E3/E4", 1400, 256, 1024, 256, 5, 2, 28),
    ("T4 E5", 700, None, 512, None, 10, 4, 58),
    ("T4 E8", 1400, 256, 1024, 256, 10, 4, 53),
)


def main() -> None:
    """Print one line per shape."""
    print("| shape | encoder | decoder | printed | counted | off by | largest LSTM layer "
          "| widths of the printed size |")  # fmt: skip
    print("|---|---|---|---:|---:|---:|---:|---|")
    for name, cells, width, decoder, decoder_width, layers, decoder_layers, printed in SHAPES:
        config = LasConfig(
            encoder_layers=layers, encoder_dim=cells, encoder_projection=width, time_reduction=1,
            attention_dim=width or cells, decoder_layers=decoder_layers, decoder_dim=decoder,
            decoder_projection=decoder_width, embedding_dim=96,
        )  # fmt: skip
        dimensions = {"input_dim": INPUT_DIM, "vocab_size": VOCAB_SIZE}
        count = count_parameters(config, **dimensions)
        recurrent = [
            layer.parameters
            for layer in count_layers(parameter_shapes(config, **dimensions))
            if layer.is_recurrent
        ]
        solved = solve_model(config, parameters=printed * 10**6, **dimensions)
        assert isinstance(solved, LasConfig)
        found = count_parameters(solved, **dimensions)
        print(
            f"| {name} | {layers} x {_cells(cells, width)} "
            f"| {decoder_layers} x {_cells(decoder, decoder_width)} | {printed} M "
            f"| {count / 1e6:.1f} M | {count / (printed * 1e6) - 1:+.0%} "
            f"| {max(recurrent) / 1e6:.2f} M "
            f"| {_cells(solved.encoder_dim, solved.encoder_projection)}, "
            f"{_cells(solved.decoder_dim, solved.decoder_projection)}: {found:,} |"
        )


def _cells(cells: int, projection: int | None) -> str:
    return f"{cells}" if projection is None else f"{cells} p {projection}"


if __name__ == "__main__":
    main()
