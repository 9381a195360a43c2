"""What a training run costs before it is started: operations, time, memory; `python -m iaat_fast.plan`.

Every figure says where it comes from: counted on the network, measured, modelled or given.
"""
