"""The garbage collector and what lives as long as the process."""

import gc


def freeze_heap() -> None:
    """Exempt every object there is from the garbage collector. Call once all that stays has been loaded.

    A full collection walks all objects of all modules: 60 ms on the server's machine, as long as a network call over
    twenty images, and everybody in flight would wait for it. It comes when the objects have grown by a quarter, which
    a process that has just started soon does. Before a fork it also keeps the collector from touching, and so copying,
    pages that processes share.
    """
    gc.collect()
    gc.freeze()
