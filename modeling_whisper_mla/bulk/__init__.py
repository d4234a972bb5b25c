"""Many recordings: over processes, in batches of like length, read ahead of the model, continuing where a run stopped.

In flow folders, manifests and datasets; out flow JSON lines, one for each recording, and a summary.
"""
