"""A finished conversion goes in; the report (report.json, report.png) and the record (conversion.json) come out: what
every latent kept and what it cost, and where all of it comes from.
"""
