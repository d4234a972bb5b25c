"""Audio goes in; statistics of one stock model come out: what attention reads while it decodes (moments), what its
predictions feel (Fisher information), and the examples themselves, some of them held out. A statistics file keeps
them for further conversions.
"""
