"""Estimates the cost of a training run in advance: operations, time, memory; `python -m iaat_fast.plan`.

Every number says where it comes from: counted on the network, measured, modelled or given.
"""
