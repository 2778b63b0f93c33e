"""Room: comparison. Methods and sizes in one table: its rows, measurements and presentation."""
