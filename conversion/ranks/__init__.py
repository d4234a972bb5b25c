"""A budget of bytes or of quality goes in; one rank for each latent comes out, compared on held-out audio, together
with the one option of a method that such audio settles.
"""
