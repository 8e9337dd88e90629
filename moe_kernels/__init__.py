"""Operators of a mixture of experts on 4-bit weights: NF4, routing, grouping, experts. Nothing of transformers is needed.

Every operator has a reference in plain torch that reads like its formula; faster implementations stand behind the same function.
"""
