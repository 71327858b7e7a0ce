"""The training mix: which sample comes when, and what a visit takes of it.

Everything random is a function of (seed, epoch, visit), so that any step can be made again without what came before it,
on however many devices and with however many processes that read ahead.
"""
