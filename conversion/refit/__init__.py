"""Factors go in; factors with better up projections come out, fitted layer by layer to what converted layers deliver,
or all together to the stock model's predictions.
"""
