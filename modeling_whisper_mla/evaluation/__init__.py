"""Word error rates one can trust: transcribe a dataset, score it, say how sure the score is, compare two models."""
