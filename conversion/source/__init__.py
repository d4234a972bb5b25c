"""A checkpoint goes in; a stock Whisper with whole, finite weights comes out, or an error that says what is wrong. What
is to be converted of it is named here too: the latents of a configuration, and the weights around each.
"""
