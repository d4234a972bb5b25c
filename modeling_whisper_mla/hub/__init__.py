"""Checkpoint folders, on disk and on the Hub: what `save_pretrained` writes, what is pushed, what is pulled.

In flows a model; out flows a folder that anyone can load: weights, configuration, processor, the model's code as flat
files, the record of the conversion and a model card. And back, whole and with checksums.
"""
