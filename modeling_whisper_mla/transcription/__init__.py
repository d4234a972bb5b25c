"""From audio to text: files are read, cut and batched, a model decodes them, and transcripts are written.

In flow audio files or arrays of 16 kHz mono samples; out flow `Transcript`s, rendered as text, JSON or subtitles.
"""
