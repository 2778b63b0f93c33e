"""Room: synthetic. The embedded corpus: sentences, voices and noise, spoken by espeak-ng."""
