"""The stages of a stream, one a module: how full queues behave, capture, the watchdog, inference, and the sinks' thread.

:func:`edgemamba.runtime.stream` is their door; nothing outside the runtime imports from here.
"""
